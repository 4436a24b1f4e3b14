#pragma once

#include <array>
#include <span>
#include <vector>

#include "kernels/cuda/kernels.h"
#include "runtime/backend/backend.h"

namespace oq {

/// A batch on the device, as a whole and cut into slices of 64 rows, for ops whose scratch memory
/// grows with their rows. Rows of one sequence are brought together for attention: within a slice
/// they are one run, wherever they stand.
class CudaBatch {
 public:
  static constexpr int kSliceRows = cuda::kExpertRows;
  struct Slice {
    int first = 0, rows = 0;  ///< of the batch
    int runs = 0;
    int longest_run = 0;
    int last_position = 0;     ///< none of its rows is beyond
    const int32_t* run_first;  ///< [runs + 1], device
    const int32_t* order;      ///< [rows], counted from `first`, device
  };

  /// Room for batches of up to max_rows rows at positions below `context`.
  CudaBatch(cuda::Stream& stream, int64_t max_rows, int64_t context);

  /// Of the device's memory, for such batches.
  static uint64_t device_bytes(int64_t max_rows);

  void load(const Batch& batch);

  /// All that launches depend on but what lies on the device: rows, logits, runs and stretches of
  /// positions. None for more rows than decode's kernels take: those steps are for prompts, seldom
  /// of one shape, and long beside their launches.
  const std::vector<int>& shape() const { return shape_; }

  /// Of any number of rows, ever one.
  const Slice& whole() const { return whole_; }
  std::span<const Slice> slices() const { return slices_; }
  int rows() const { return rows_; }
  int logit_rows() const { return logit_rows_; }
  /// On the device, by row.
  const int32_t* tokens() const { return memory_.as<int32_t>(); }
  const int32_t* positions() const { return tokens() + max_rows_; }
  const int32_t* sequences() const { return tokens() + 2 * max_rows_; }
  /// Rows that stand side by side and belong to one sequence have one number: a run, which is what
  /// "per tensor" ranges over.
  const int32_t* runs() const { return tokens() + 4 * max_rows_; }
  /// On the device, which rows.
  const int32_t* logit_list() const { return tokens() + 3 * max_rows_; }

 private:
  Slice slice(const Batch& batch, int first, int rows);

  cuda::Stream& stream_;
  int64_t max_rows_, context_;
  cuda::Memory memory_;
  /// What memory_ gets: 5 lists of max_rows, then slices' lists. Two in turn, for one may still be
  /// on its way to a long prompt's kernels when the next is made.
  struct Lists {
    cuda::Pinned memory;
    cuda::Event copied;
  };
  std::array<Lists, 2> lists_;
  size_t turn_ = 0;          ///< which of them is the current batch's
  int32_t* host_ = nullptr;  ///< those of the current batch
  size_t used_ = 0;          ///< of them
  Slice whole_;
  std::vector<Slice> slices_;
  std::vector<int> shape_;
  int rows_ = 0, logit_rows_ = 0;
};

}  // namespace oq
