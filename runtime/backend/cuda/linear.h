#pragma once

#include <map>
#include <span>
#include <vector>

#include "kernels/cuda/kernels.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/cuda/weight.h"

namespace oq {

/// Activations of up to max_rows rows on the device.
struct CudaBuffer final : Buffer {
  CudaBuffer(int64_t rows, int64_t cols)
      : stride(int((cols + 3) / 4 * 4)), memory(size_t(rows) * size_t(stride) * sizeof(float)) {}

  float* row(int64_t m) const { return memory.as<float>() + m * stride; }

  int stride;
  cuda::Memory memory;
};

cuda::NormArgs norm_args(const Norm& norm);

/// Runs linears of any number of rows.
class CudaLinears {
 public:
  explicit CudaLinears(cuda::Stream& stream) : stream_(stream) {}

  /// Batches keep 22 bits of their activations, not 11.
  void set_precise(bool precise) { precise_ = precise; }

  /// Linears that share `in` side by side in `out.y`, in as few launches as their kinds allow; with
  /// Finish::activate the two become one. Throws where two that must go together are of two kinds.
  void run(std::span<const Linear> linears, const cuda::InputArgs& in, const cuda::OutputArgs& out);

  /// One linear, or gate and up, of every expert; `chosen` has the lists of cuda::route in
  /// in.rows and in.count. `table` keeps what the device needs to know of them from call to call.
  struct Table {
    cuda::Memory memory;
    bool ready = false;
  };
  void run_experts(std::span<const std::vector<Linear>> experts, Table& table,
                   const cuda::InputArgs& in, const cuda::OutputArgs& out);

 private:
  template <class Matrix>
  void start(const cuda::LinearsArgs<Matrix>& args);
  template <class Matrix>
  void run_kind(std::span<const Linear> linears, int column, const cuda::InputArgs& in,
                const cuda::OutputArgs& out);
  template <class Matrix>
  void run_expert_kind(std::span<const std::vector<Linear>> experts, Table& table,
                       const cuda::InputArgs& in, const cuda::OutputArgs& out);

  cuda::Stream& stream_;
  bool precise_ = true;
  cuda::BatchSpace space_;
};

}  // namespace oq
