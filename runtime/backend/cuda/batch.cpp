#include "runtime/backend/cuda/batch.h"

#include <algorithm>
#include <numeric>

namespace oq {
namespace {

constexpr int kSlice = cuda::kMaxTokens;

}  // namespace

CudaBatch::CudaBatch(cuda::Stream& stream, int64_t max_rows)
    : stream_(stream), max_rows_(max_rows) {
  const int64_t slices = (max_rows + kSlice - 1) / kSlice;
  host_.resize(size_t(6 * max_rows + slices * (kSlice + 1)));
  memory_ = cuda::Memory(host_.size() * sizeof(int32_t));
}

void CudaBatch::add_slice(const Batch& batch, int first) {
  const int rows = std::min(kSlice, rows_ - first);
  int32_t* order = host_.data() + 5 * max_rows_ + first;
  const int64_t run_offset = 6 * max_rows_ + first / kSlice * (kSlice + 1);
  int32_t* run_first = host_.data() + run_offset;
  const auto sequence = [&](int row) { return batch.sequences[size_t(first + row)]; };
  std::iota(order, order + rows, 0);
  std::stable_sort(order, order + rows, [&](int a, int b) { return sequence(a) < sequence(b); });
  Slice s{.first = first,
          .rows = rows,
          .run_first = tokens() + run_offset,
          .order = tokens() + 5 * max_rows_ + first};
  for (int i = 0; i < rows; ++i) {
    if (i == 0 || sequence(order[i]) != sequence(order[i - 1])) run_first[s.runs++] = i;
    s.last_position = std::max(s.last_position, int(batch.positions[size_t(first + i)]));
  }
  run_first[s.runs] = rows;
  slices_.push_back(s);
}

void CudaBatch::load(const Batch& batch) {
  rows_ = int(batch.rows());
  logit_rows_ = int(batch.logit_rows.size());
  std::copy(batch.tokens.begin(), batch.tokens.end(), host_.begin());
  std::copy(batch.positions.begin(), batch.positions.end(), host_.begin() + max_rows_);
  std::copy(batch.sequences.begin(), batch.sequences.end(), host_.begin() + 2 * max_rows_);
  std::copy(batch.logit_rows.begin(), batch.logit_rows.end(), host_.begin() + 3 * max_rows_);
  int32_t* runs = host_.data() + 4 * max_rows_;
  for (int i = 0; i < rows_; ++i) {
    const auto at = size_t(i);
    const bool same = i > 0 && batch.sequences[at] == batch.sequences[at - 1];
    runs[i] = i == 0 ? 0 : runs[i - 1] + (same ? 0 : 1);
  }
  slices_.clear();
  for (int first = 0; first < rows_; first += kSlice) add_slice(batch, first);
  cuda::upload(stream_, memory_.data(), host_.data(), memory_.bytes());
}

}  // namespace oq
