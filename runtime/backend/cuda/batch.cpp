#include "runtime/backend/cuda/batch.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace oq {
namespace {

constexpr int kSlice = cuda::kMaxTokens;

/// Stretches that a captured step covers: a power of two, so that a context has few shapes. Blocks
/// of stretches that nobody sees leave at once, and the others' bits do not depend on them.
int captured_stretches(int last_position, int64_t context) {
  const auto needed = unsigned(last_position / cuda::kKvStretch + 1);
  const auto all = unsigned((context + cuda::kKvStretch - 1) / cuda::kKvStretch);
  return int(std::min(std::bit_ceil(needed), all));
}

}  // namespace

CudaBatch::CudaBatch(cuda::Stream& stream, int64_t max_rows, int64_t context)
    : stream_(stream), max_rows_(max_rows), context_(context) {
  const int64_t slices = (max_rows + kSlice - 1) / kSlice;
  host_.resize(size_t(5 * max_rows + slices * (kSlice + 1)));
  memory_ = cuda::Memory(host_.size() * sizeof(int32_t));
}

void CudaBatch::add_slice(const Batch& batch, int first) {
  const int rows = std::min(kSlice, rows_ - first);
  int32_t* order = host_.data() + 4 * max_rows_ + first;
  const int64_t run_offset = 5 * max_rows_ + first / kSlice * (kSlice + 1);
  int32_t* run_first = host_.data() + run_offset;
  const auto sequence = [&](int row) { return batch.sequences[size_t(first + row)]; };
  std::iota(order, order + rows, 0);
  std::stable_sort(order, order + rows, [&](int a, int b) { return sequence(a) < sequence(b); });
  Slice s{.first = first,
          .rows = rows,
          .run_first = tokens() + run_offset,
          .order = tokens() + 4 * max_rows_ + first};
  for (int i = 0; i < rows; ++i) {
    if (i == 0 || sequence(order[i]) != sequence(order[i - 1])) run_first[s.runs++] = i;
    s.last_position = std::max(s.last_position, int(batch.positions[size_t(first + i)]));
  }
  run_first[s.runs] = rows;
  if (rows_ <= kSlice) {
    const int stretches = captured_stretches(s.last_position, context_);
    s.last_position = stretches * cuda::kKvStretch - 1;
    shape_ = {rows_, logit_rows_, s.runs, stretches};
  }
  slices_.push_back(s);
}

void CudaBatch::load(const Batch& batch) {
  rows_ = int(batch.rows());
  logit_rows_ = int(batch.logit_rows.size());
  std::copy(batch.tokens.begin(), batch.tokens.end(), host_.begin());
  std::copy(batch.positions.begin(), batch.positions.end(), host_.begin() + max_rows_);
  std::copy(batch.sequences.begin(), batch.sequences.end(), host_.begin() + 2 * max_rows_);
  std::copy(batch.logit_rows.begin(), batch.logit_rows.end(), host_.begin() + 3 * max_rows_);
  slices_.clear();
  shape_.clear();
  for (int first = 0; first < rows_; first += kSlice) add_slice(batch, first);
  cuda::upload(stream_, memory_.data(), host_.data(), memory_.bytes());
}

}  // namespace oq
