#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "runtime/backend/backend.h"

namespace oq {

/// A tensor where the mapping has it: nothing is copied but the indices of weak columns, which
/// are used as indices and so must not change under us.
struct CpuWeight final : Weight {
  CpuWeight(std::shared_ptr<const File> file, const TensorInfo& info);

  int64_t rows() const { return int64_t(info.rows); }
  int64_t cols() const { return int64_t(info.cols); }
  const float* floats() const { return reinterpret_cast<const float*>(data); }

  std::shared_ptr<const File> file;
  TensorInfo info;
  const std::byte* data;
  std::optional<PackedView> packed;  ///< of Kind::packed
  std::vector<uint32_t> weak;
  /// [panels * 8] Of each row, the sum of its live weights: what the shift of an ActivationGrid is
  /// multiplied with. Made by the first linear that needs it.
  mutable std::vector<double> live_sums;
};

/// How the inputs of a linear are treated before they meet its weights.
struct InputMode {
  bool exact = false;       ///< fp32, quantized by value; otherwise packed weights meet integers
  int bits = 16;            ///< dynamic quantization of the scheme, below 16
  bool per_tensor = false;  ///< one range per sequence instead of per token

  bool integers(const CpuWeight& w) const { return w.packed && !exact; }
};

/// Runs linears that share an input over the thread pool, preparing that input once for each
/// form that a weight wants: int8 blocks or fp32, with its weak columns taken out.
class LinearRunner {
 public:
  LinearRunner(ThreadPool& pool, const cpu::Kernels& kernels) : pool_(pool), kernels_(kernels) {}

  /// y = [l(x) for each linear] side by side, or y += with `residual`. `runs` are the first rows
  /// of consecutive rows of one sequence, and the end: what "per tensor" ranges over.
  void run(std::span<const Linear> linears, cpu::Rows x, int64_t tokens, const InputMode& mode,
           std::span<const int64_t> runs, bool residual, cpu::MutableRows y);

 private:
  /// One form of the input.
  struct Input {
    std::vector<float> live;  ///< [tokens][stride], weak and padding columns 0
    std::vector<float> weak;  ///< [tokens][weak columns]
    cpu::Int8Rows int8;       ///< of packed weights, or
    cpu::GridRows on_grid;    ///< where the scheme quantizes
    int64_t stride = 0;
  };
  struct Task {
    const CpuWeight* weight;
    const CpuWeight* bias;
    const Input* input;
    int64_t first_unit;  ///< units of 8 rows, counted over all linears
    int64_t column;      ///< of y
  };

  void prepare(const CpuWeight& w, cpu::Rows x, int64_t tokens, const InputMode& mode,
               std::span<const int64_t> runs, Input& input);
  void take_weak(const CpuWeight& w, int64_t token, Input& input) const;
  void quantize_row(const CpuWeight& w, int64_t token, Input& input) const;
  /// The scheme's quantization, as integers and by value. Ranges are those of live columns.
  void quantize_to_grids(const CpuWeight& w, const InputMode& mode, int64_t tokens,
                         std::span<const int64_t> runs, Input& input);
  static void quantize_by_value(const CpuWeight& w, const InputMode& mode, int64_t tokens,
                                std::span<const int64_t> runs, Input& input);
  void make_live_sums(const CpuWeight& w);
  void run_units(const Task& task, int64_t begin, int64_t end, int64_t tokens,
                 const InputMode& mode, bool residual, cpu::MutableRows y, cpu::MutableRows out);

  ThreadPool& pool_;
  const cpu::Kernels& kernels_;
  std::vector<Input> inputs_;
  std::vector<Task> tasks_;
  std::vector<float> sums_;  ///< results on their way into a residual
};

}  // namespace oq
