#pragma once

#include <vector>

#include "kernels/cuda/kernels.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/cuda/batch.h"
#include "runtime/backend/cuda/weight.h"

namespace oq {

/// What attention takes of the device's memory.
struct AttentionRoom {
  cuda::KvType kv_type = cuda::KvType::f16;
  int positions = 0;  ///< of a sequence: whole stretches
  int padded_dim = 0, stretches = 0;
  uint64_t cell_bytes = 0, grid_bytes = 0;  ///< of a block's keys, or of its values; of both grids
  uint64_t part_bytes = 0, arrived_bytes = 0, rotation_bytes = 0;

  explicit AttentionRoom(const Plan& plan);
};

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

  cuda::Stream& stream_;
  Plan plan_;
  AttentionRoom room_;
  std::vector<Layer> layers_;
  cuda::Memory rotations_;  ///< [context][rope_dim / 2][cosine, sine]
  cuda::Memory parts_, arrived_;
};

}  // namespace oq
