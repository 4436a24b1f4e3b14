#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/kernels.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/cuda/integers.h"
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

/// What linears take of the device's memory, beside weights and activations, for any batch.
struct LinearRoom {
  uint64_t codes = 0;     ///< integer activations
  uint64_t batch = 0;     ///< BatchSpace, once there are more than 8 rows
  uint64_t measured = 0;  ///< while engines for integers are measured

  explicit LinearRoom(const Plan& plan);
};

/// Runs linears of any number of rows.
class CudaLinears {
 public:
  CudaLinears(cuda::Stream& stream, const cuda::DeviceInfo& device)
      : stream_(stream), integers_(stream, device) {}

  /// What has to be said of the choice between engines, or of a missing library; or empty.
  std::string notice() const;

  /// Before memory is counted: refuses what cannot run, and loads the library that multiplies long
  /// prompts, which takes some. Without it they are slower.
  void check(const Plan& plan);
  /// Before anything runs. With `plan.exact` batches keep 22 bits of their activations, not 11.
  void configure(const Plan& plan);

  /// Linears that share `in` side by side in `out.y`, in as few launches as their kinds allow; with
  /// Finish::activate the two become one.
  void run(std::span<const Linear> linears, const cuda::InputArgs& in, const cuda::OutputArgs& out);

  /// One linear, or gate and up, of every expert, all of one kind; `chosen` has the lists of
  /// cuda::route in in.rows and in.count. `table` keeps what the device needs to know of them from
  /// call to call.
  struct Table {
    cuda::Memory memory;
    bool ready = false;
    int weak_columns = 0;  ///< the most that any of them has
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
  std::string missing_;  ///< why there is no library
  CudaIntegers integers_;
};

}  // namespace oq
