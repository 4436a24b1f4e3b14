#pragma once

#include <vector>

#include "kernels/cuda/kernels.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/cuda/batch.h"
#include "runtime/backend/cuda/weight.h"

namespace oq {

/// The KV cache on the device, and attention over it.
class CudaAttention {
 public:
  CudaAttention(cuda::Stream& stream, const Plan& plan);

  /// Rotates and appends what `qkv` holds, and attends; all of the batch's rows. Both frequencies
  /// and `alibi` may be nullptr.
  void run(int64_t layer, const CudaBatch& batch, const CudaWeight* inv_freq,
           const CudaWeight* alibi, const float* qkv, int qkv_stride, float* out, int out_stride);

 private:
  struct Layer {
    cuda::Memory keys, values, grids;
  };
  void make_rotations(const CudaWeight& inv_freq);
  cuda::KvArgs cache(int64_t layer) const;
  cuda::KvType kv_type() const;

  cuda::Stream& stream_;
  Plan plan_;
  int positions_ = 0, padded_dim_ = 0, stretches_ = 0;
  std::vector<Layer> layers_;
  cuda::Memory rotations_;  ///< [context][rope_dim / 2][cosine, sine]
  cuda::Memory parts_, arrived_;
};

}  // namespace oq
