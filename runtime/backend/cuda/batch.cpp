#include "runtime/backend/cuda/batch.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace oq {
namespace {

/// Stretches that a captured step covers: a power of two, so that a context has few shapes. Blocks
/// of stretches that nobody sees leave at once, and the others' bits do not depend on them.
int captured_stretches(int last_position, int64_t context) {
  const auto needed = unsigned(last_position / cuda::kKvStretch + 1);
  const auto all = unsigned((context + cuda::kKvStretch - 1) / cuda::kKvStretch);
  return int(std::min(std::bit_ceil(needed), all));
}

/// 5 lists of max_rows; then the whole's order, and its runs and their end, and the slices'.
int64_t list_lengths(int64_t max_rows) {
  const int64_t slices = 1 + (max_rows + CudaBatch::kSliceRows - 1) / CudaBatch::kSliceRows;
  return 9 * max_rows + slices;
}

}  // namespace

uint64_t CudaBatch::device_bytes(int64_t max_rows) {
  return uint64_t(list_lengths(max_rows)) * sizeof(int32_t);
}

CudaBatch::CudaBatch(cuda::Stream& stream, int64_t max_rows, int64_t context)
    : stream_(stream),
      max_rows_(max_rows),
      context_(context),
      memory_(device_bytes(max_rows)),
      lists_{Lists{cuda::Pinned(memory_.bytes()), {}}, Lists{cuda::Pinned(memory_.bytes()), {}}} {}

CudaBatch::Slice CudaBatch::slice(const Batch& batch, int first, int rows) {
  int32_t* order = host_ + used_;
  int32_t* run_first = order + rows;
  const auto sequence = [&](int row) { return batch.sequences[size_t(first + row)]; };
  std::iota(order, order + rows, 0);
  std::stable_sort(order, order + rows, [&](int a, int b) { return sequence(a) < sequence(b); });
  Slice s{.first = first,
          .rows = rows,
          .runs = 0,
          .longest_run = 0,
          .last_position = 0,
          .run_first = tokens() + used_ + rows,
          .order = tokens() + used_};
  for (int i = 0; i < rows; ++i) {
    if (i == 0 || sequence(order[i]) != sequence(order[i - 1])) run_first[s.runs++] = i;
    s.longest_run = std::max(s.longest_run, i + 1 - run_first[s.runs - 1]);
    s.last_position = std::max(s.last_position, int(batch.positions[size_t(first + i)]));
  }
  run_first[s.runs] = rows;
  used_ += size_t(rows + s.runs + 1);
  return s;
}

void CudaBatch::load(const Batch& batch) {
  turn_ = 1 - turn_;
  Lists& lists = lists_[turn_];
  lists.copied.wait();
  host_ = reinterpret_cast<int32_t*>(lists.memory.data());
  rows_ = int(batch.rows());
  logit_rows_ = int(batch.logit_rows.size());
  std::copy(batch.tokens.begin(), batch.tokens.end(), host_);
  std::copy(batch.positions.begin(), batch.positions.end(), host_ + max_rows_);
  std::copy(batch.sequences.begin(), batch.sequences.end(), host_ + 2 * max_rows_);
  std::copy(batch.logit_rows.begin(), batch.logit_rows.end(), host_ + 3 * max_rows_);
  int32_t* runs = host_ + 4 * max_rows_;
  for (int i = 0; i < rows_; ++i) {
    const auto at = size_t(i);
    const bool same = i > 0 && batch.sequences[at] == batch.sequences[at - 1];
    runs[i] = i == 0 ? 0 : runs[i - 1] + (same ? 0 : 1);
  }
  used_ = size_t(5 * max_rows_);
  whole_ = slice(batch, 0, rows_);
  slices_.clear();
  shape_.clear();
  if (rows_ <= cuda::kMaxTokens) {
    const int stretches = captured_stretches(whole_.last_position, context_);
    whole_.last_position = stretches * cuda::kKvStretch - 1;
    shape_ = {rows_, logit_rows_, whole_.runs, stretches};
  }
  if (rows_ <= kSliceRows) {
    slices_.push_back(whole_);
  } else {
    for (int first = 0; first < rows_; first += kSliceRows) {
      slices_.push_back(slice(batch, first, std::min(kSliceRows, rows_ - first)));
    }
  }
  cuda::upload(stream_, memory_.data(), lists.memory, used_ * sizeof(int32_t));
  lists.copied.record(stream_);
}

}  // namespace oq
