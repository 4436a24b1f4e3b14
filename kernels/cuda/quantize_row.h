#pragma once

#include "kernels/cuda/block.h"
#include "kernels/cuda/integer.h"

/// How a block puts rows of x onto their grids: norm, range, codes. All threads of a block of
/// kThreads call these together, so that the same row gives the same bits whoever asks: where a
/// product meets a sum, fmaf says so, or the compiler would choose in each kernel anew.
namespace oq::cuda {

/// A row of x, and which of its columns are live.
struct SourceRow {
  const float* x;
  int cols;
  const uint32_t* weak_mask;  ///< as in PackedMatrix

  OQ_DEVICE bool is_weak(int k) const {
    return weak_mask != nullptr && (weak_mask[k / 32] >> (k % 32) & 1u) != 0;
  }
};

/// How many rows a call has, or those of one expert.
OQ_DEVICE int row_count(const InputArgs& in, int expert) {
  return in.count == nullptr ? in.tokens : in.count[expert];
}
/// Where expert's row i is listed, by `rows`.
OQ_DEVICE int listed(const InputArgs& in, const int32_t* rows, int expert, int i) {
  if (rows == nullptr) return i;
  return rows[in.count == nullptr ? i : expert * kExpertRows + i];
}
OQ_DEVICE const float* row_of(const InputArgs& in, int expert, int i) {
  const int64_t first = in.count == nullptr ? 0 : expert * in.expert_stride;
  return in.x + first + int64_t(listed(in, in.rows, expert, i)) * in.stride;
}

OQ_DEVICE float normed(const NormArgs& norm, const RowStats& s, const float* x, int k) {
  const float v = x[k];
  if (norm.kind == NormKind::none) return v;
  const float y = (v - s.mean) * s.inv;
  return fmaf(y, norm.weight[k], norm.kind == NormKind::layer ? norm.bias[k] : 0.0f);
}

/// `scratch` has kWarps floats.
OQ_DEVICE RowStats measure(const NormArgs& norm, const SourceRow& row, float* scratch) {
  RowStats s{0.0f, 1.0f, INFINITY, -INFINITY};
  const auto over = [&](auto added) {
    float sum = 0;
    for (int k = thread_id(); k < row.cols; k += kThreads) sum = added(sum, row.x[k]);
    return block_reduce<Sum>(sum, scratch);
  };
  if (norm.kind == NormKind::layer) {
    s.mean = over([](float sum, float v) { return sum + v; }) / float(row.cols);
  }
  if (norm.kind != NormKind::none) {
    const float square =
        over([&](float sum, float v) { return fmaf(v - s.mean, v - s.mean, sum); });
    s.inv = 1.0f / sqrtf(square / float(row.cols) + norm.eps);
  }
  float poison = 0;
  for (int k = thread_id(); k < row.cols; k += kThreads) {
    if (row.is_weak(k)) continue;
    const float v = normed(norm, s, row.x, k);
    s.low = fminf(s.low, v);
    s.high = fmaxf(s.high, v);
    poison = fmaf(v, 0.0f, poison);
  }
  poison = block_reduce<Sum>(poison, scratch);
  s.low = block_reduce<Min>(s.low, scratch) + poison;
  s.high = block_reduce<Max>(s.high, scratch) + poison;
  return s;
}

/// The statistics of row i, with the range of all rows of its run: rows that stand side by side and
/// belong to one run of the batch. `stats` are those of expert's rows.
OQ_DEVICE RowStats joined(const InputArgs& in, int expert, const RowStats* stats, int i,
                          float* scratch) {
  const int rows = row_count(in, expert);
  const auto begins = [&](int m) {
    return in.runs[listed(in, in.run_rows, expert, m)] !=
           in.runs[listed(in, in.run_rows, expert, m - 1)];
  };
  float first = 0, last = float(rows);
  for (int m = thread_id(); m < rows; m += kThreads) {
    if (m == 0 || !begins(m)) continue;
    if (m <= i) first = fmaxf(first, float(m));
    if (m > i) last = fminf(last, float(m));
  }
  first = block_reduce<Max>(first, scratch);
  last = block_reduce<Min>(last, scratch);
  RowStats s = stats[i];
  float low = INFINITY, high = -INFINITY, poison = 0;
  for (int m = int(first) + thread_id(); m < int(last); m += kThreads) {
    low = fminf(low, stats[m].low);
    high = fmaxf(high, stats[m].high);
    if (stats[m].low != stats[m].low) poison = NAN;
  }
  poison = block_reduce<Sum>(poison, scratch);
  s.low = block_reduce<Min>(low, scratch) + poison;
  s.high = block_reduce<Max>(high, scratch) + poison;
  return s;
}

/// kernels/activation_grid.h
struct Grid8 {
  TokenGrid grid;
  float top;

  OQ_DEVICE Grid8(const RowStats& s, int bits) : top(float((1 << bits) - 1)) {
    const bool any = !(s.low > s.high);  // a live column; NaNs pass
    grid.scale = any ? (s.high - s.low) / top : 0.0f;
    if (!(grid.scale > 1e-5f) && grid.scale == grid.scale) grid.scale = 1e-5f;
    grid.zero = any ? rintf(-s.low / grid.scale) : 0.0f;
  }
  OQ_DEVICE float code(float x) const {  // NaN where the grid is one of NaNs: value() keeps it
    return fminf(fmaxf(rintf(x / grid.scale) + grid.zero, 0.0f), top);
  }
  OQ_DEVICE float value(float x) const { return grid.scale * (code(x) - grid.zero); }
};

}  // namespace oq::cuda
