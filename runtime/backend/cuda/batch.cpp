#include "runtime/backend/cuda/batch.h"

#include <algorithm>
#include <numeric>

namespace oq {

CudaBatch::CudaBatch(cuda::Stream& stream, int64_t max_rows)
    : stream_(stream), max_rows_(max_rows) {
  const int64_t slices = 1 + (max_rows + kSliceRows - 1) / kSliceRows;
  host_.resize(size_t(8 * max_rows + slices));  // a slice's order, and its runs and their end
  memory_ = cuda::Memory(host_.size() * sizeof(int32_t));
}

CudaBatch::Slice CudaBatch::slice(const Batch& batch, int first, int rows) {
  int32_t* order = host_.data() + used_;
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
  rows_ = int(batch.rows());
  logit_rows_ = int(batch.logit_rows.size());
  std::copy(batch.tokens.begin(), batch.tokens.end(), host_.begin());
  std::copy(batch.positions.begin(), batch.positions.end(), host_.begin() + max_rows_);
  std::copy(batch.sequences.begin(), batch.sequences.end(), host_.begin() + 2 * max_rows_);
  std::copy(batch.logit_rows.begin(), batch.logit_rows.end(), host_.begin() + 3 * max_rows_);
  used_ = size_t(4 * max_rows_);
  whole_ = slice(batch, 0, rows_);
  slices_.clear();
  if (rows_ <= kSliceRows) {
    slices_.push_back(whole_);
  } else {
    for (int first = 0; first < rows_; first += kSliceRows) {
      slices_.push_back(slice(batch, first, std::min(kSliceRows, rows_ - first)));
    }
  }
  cuda::upload(stream_, memory_.data(), host_.data(), memory_.bytes());
}

}  // namespace oq
