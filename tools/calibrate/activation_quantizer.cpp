#include "tools/calibrate/activation_quantizer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/activation_grid.h"
#include "kernels/kv_grid.h"
#include "tools/calibrate/learn/group_grid.h"

namespace oq::calibrate {
namespace {

using Quantizer = ActivationQuantizer;

constexpr float kLeastScale = 1e-5f;  ///< ActivationGrid's

/// The extremes of some values; NaNs stay.
struct Range {
  float low = std::numeric_limits<float>::infinity(), high = -low;
  int64_t lows = 0, highs = 0;  ///< how many values equal them

  void add(const float* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      low = x[i] >= low ? low : x[i];
      high = x[i] <= high ? high : x[i];
    }
  }
  void count(const float* x, int64_t n) {
    lows += count_equal(x, n, low);
    highs += count_equal(x, n, high);
  }
};

GroupGrid grid_of(const Quantizer& q, const Range& r) {
  const ActivationGrid grid = ActivationGrid::of(r.low, r.high, q.bits);
  float zero = grid.zero;
  if (q.zero_limit > 0) zero = std::clamp(zero, -q.zero_limit, q.zero_limit);
  return {grid.scale, -zero, grid.top() - zero};
}

/// Beyond what GroupGrid rounds exactly, ActivationGrid itself.
bool is_wide(const GroupGrid& g) { return !(std::fabs(g.low) < 0x1p21f); }

void quantize(const Quantizer& q, const Range& r, const float* x, int64_t n, float* out) {
  if (q.kind == Quantizer::Kind::cache) {
    const KvGrid grid = KvGrid::of({x, size_t(n)}, q.bits);
    for (int64_t i = 0; i < n; ++i) out[i] = grid.value(grid.code(x[i]));
    return;
  }
  const GroupGrid grid = grid_of(q, r);
  if (!is_wide(grid)) return quantize_group(grid, x, n, out);
  const ActivationGrid wide = ActivationGrid::of(r.low, r.high, q.bits);
  for (int64_t i = 0; i < n; ++i) out[i] = wide.scale * (wide.code(x[i]) - wide.zero);
}

/// d becomes dx but for what goes through the range; returns d scale.
float pass(const Quantizer& q, const Range& r, const float* x, int64_t n, float* d) {
  const GroupGrid grid = grid_of(q, r);
  if (is_wide(grid)) return 0;  // all values within 1e-5 * 2^21 of each other: one level
  const float ds = scale_gradient(grid, x, n, d);
  pass_gradient(grid, x, n, d);
  return (r.high - r.low) / ((1 << q.bits) - 1) < kLeastScale ? 0 : ds;
}

/// x = s code + low with code = clip(floor((x - low) / s + 1/2)):
///   ds = code - m (x - low) / s,  d low = 1 - m,  dx = m
void cache_backward(int bits, const float* x, int64_t n, float* d) {
  const KvGrid grid = KvGrid::of({x, size_t(n)}, bits);
  const float scale = to_float(grid.scale), low = to_float(grid.low);
  const auto top = float((1 << bits) - 1);
  Range r;
  r.add(x, n);
  r.count(x, n);
  float d_scale = 0, d_low = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float u = (x[i] - low) / scale;
    const bool inside = u + 0.5f >= 0 && u + 0.5f < top + 1;
    d_scale += d[i] * (float(grid.code(x[i])) - (inside ? u : 0.0f));
    d_low += inside ? 0.0f : d[i];
    d[i] = inside ? d[i] : 0.0f;
  }
  add_where_equal(x, n, r.high, d_scale / top / float(r.highs), d);
  add_where_equal(x, n, r.low, (d_low - d_scale / top) / float(r.lows), d);
}

/// The columns that are quantized, side by side, and back again.
class Live {
 public:
  Live(int64_t cols, std::span<const uint32_t> weak) {
    for (int64_t k = 0, i = 0; k < cols; ++k) {
      if (i < int64_t(weak.size()) && weak[size_t(i)] == k) {
        ++i;
      } else {
        columns_.push_back(k);
      }
    }
  }
  std::vector<float> gather(const float* x, int64_t rows, int64_t stride) const {
    std::vector<float> out;
    out.reserve(size_t(rows) * columns_.size());
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t k : columns_) out.push_back(x[t * stride + k]);
    }
    return out;
  }
  void scatter(const std::vector<float>& from, int64_t rows, int64_t stride, float* x) const {
    auto next = from.begin();
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t k : columns_) x[t * stride + k] = *next++;
    }
  }
  int64_t size() const { return int64_t(columns_.size()); }

 private:
  std::vector<int64_t> columns_;
};

Quantizer without_weak(Quantizer q) {
  q.weak = {};
  return q;
}

Range row_range(const float* x, int64_t n) {
  Range r;
  r.add(x, n);
  return r;
}

Range whole_range(const float* x, int64_t rows, int64_t cols, int64_t stride) {
  Range r;
  for (int64_t t = 0; t < rows; ++t) r.add(x + t * stride, cols);
  return r;
}

}  // namespace

void ActivationQuantizer::forward(ThreadPool& pool, const float* x, int64_t rows, int64_t cols,
                                  int64_t stride, float* out) const {
  if (!weak.empty()) {
    const Live live(cols, weak);
    std::vector<float> values = live.gather(x, rows, stride);
    without_weak(*this).forward(pool, values.data(), rows, live.size(), live.size(), values.data());
    if (out != x) {
      for (int64_t t = 0; t < rows; ++t) std::copy_n(x + t * stride, cols, out + t * stride);
    }
    return live.scatter(values, rows, stride, out);
  }
  const Range all = per_tensor ? whole_range(x, rows, cols, stride) : Range();
  pool.parallel_for(rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = x + t * stride;
      quantize(*this, per_tensor ? all : row_range(row, cols), row, cols, out + t * stride);
    }
  });
}

void ActivationQuantizer::backward(ThreadPool& pool, const float* x, int64_t rows, int64_t cols,
                                   int64_t stride, float* d) const {
  if (!weak.empty()) {
    const Live live(cols, weak);
    const std::vector<float> values = live.gather(x, rows, stride);
    std::vector<float> gradient = live.gather(d, rows, stride);
    without_weak(*this).backward(pool, values.data(), rows, live.size(), live.size(),
                                 gradient.data());
    return live.scatter(gradient, rows, stride, d);
  }
  if (kind == Kind::cache) {
    return pool.parallel_for(rows, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) {
        cache_backward(bits, x + t * stride, cols, d + t * stride);
      }
    });
  }
  const auto top = float((1 << bits) - 1);
  const auto to_range = [&](const Range& r, float ds, const float* row, float* to) {
    add_where_equal(row, cols, r.high, ds / top / float(r.highs), to);
    add_where_equal(row, cols, r.low, -ds / top / float(r.lows), to);
  };
  if (per_tensor) {  // in order: the sum over rows is one number
    Range r = whole_range(x, rows, cols, stride);
    double ds = 0;
    for (int64_t t = 0; t < rows; ++t) {
      r.count(x + t * stride, cols);
      ds += double(pass(*this, r, x + t * stride, cols, d + t * stride));
    }
    for (int64_t t = 0; t < rows; ++t) to_range(r, float(ds), x + t * stride, d + t * stride);
    return;
  }
  pool.parallel_for(rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = x + t * stride;
      Range r = row_range(row, cols);
      r.count(row, cols);
      to_range(r, pass(*this, r, row, cols, d + t * stride), row, d + t * stride);
    }
  });
}

}  // namespace oq::calibrate
