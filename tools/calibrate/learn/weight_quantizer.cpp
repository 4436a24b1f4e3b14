#include "tools/calibrate/learn/weight_quantizer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "format/error.h"

namespace oq::calibrate {
namespace {

constexpr float kLeastScale = 1e-5f, kLargestScale = 1e4f, kLargestZero = 1e4f;

bool is_symmetric(const Packing& p) { return p.zero_mode == ZeroMode::constant; }

/// The logit of how much of a range's end a grid keeps.
float start_of(float kept, float end) {
  if (end == 0) return Clipping::kStart;
  const float most = 1.0f / (1.0f + std::exp(-Clipping::kStart));
  const float factor = std::clamp(kept / end, 0.02f, most);
  return std::log(factor / (1 - factor));
}

}  // namespace

/// The extremes of a group's weights.
struct WeightQuantizer::Range {
  float least, most;
};

Clipping::Clipping(int64_t rows, int64_t groups, float start)
    : upper(rows, groups), lower(rows, groups) {
  std::fill(upper.values().begin(), upper.values().end(), start);
  std::fill(lower.values().begin(), lower.values().end(), start);
}

WeightQuantizer::WeightQuantizer(int64_t rows, int64_t cols, const Packing& packing,
                                 bool stored_scales, Bounds bounds)
    : rows_(rows),
      cols_(cols),
      packing_(packing),
      stored_scales_(stored_scales),
      bounds_(bounds),
      kernels_(cpu::best_kernels()) {
  const PackedLayout layout = PackedLayout::of(uint64_t(rows), uint64_t(cols), packing);  // checks
  groups_ = int64_t(layout.groups);
  group_ = int64_t(layout.group);
  scales_ = Matrix(rows, groups_);
  zeros_ = Matrix(rows, groups_);
}

void WeightQuantizer::keep_weak(std::vector<uint32_t> columns, bool bf16) {
  weak_ = std::move(columns);
  packing_.weak_bf16 = bf16;
}

/// A row's weights with 0, which every grid holds, in place of weak ones.
const float* WeightQuantizer::live(std::span<const float> row, std::vector<float>& masked) const {
  if (weak_.empty()) return row.data();
  masked.assign(row.begin(), row.end());
  for (const uint32_t k : weak_) masked[k] = 0;
  return masked.data();
}

float WeightQuantizer::weak_weight(const Matrix& w, int64_t row, uint32_t column) const {
  return weak_value(w(row, column), {.packing = packing_}, row, column);
}

WeightQuantizer::Range WeightQuantizer::range(const float* w, int64_t n) const {
  Range r{};
  kernels_.range(w, n, &r.least, &r.most);
  return r;
}

/// What the bounds' logits make of a range; without clipping, nothing.
float WeightQuantizer::factor(const Matrix& logits, int64_t row, int64_t group) const {
  if (logits.empty()) return 1.0f;
  return rounded(1.0f / (1.0f + std::exp(-rounded(logits(row, group)))));
}

void WeightQuantizer::fit(int64_t row, int64_t group, const Range& r, const Clipping& clipping) {
  const float high = rounded(factor(clipping.upper, row, group) * r.most);
  const float low = rounded(factor(clipping.lower, row, group) * r.least);
  float span = rounded(high - low), steps = float(packing_.max_code());
  if (is_symmetric(packing_)) {
    span = std::max(std::fabs(high), std::fabs(low));
    steps = float(packing_.zero);
  }
  float scale = std::clamp(rounded(span / steps), kLeastScale, kLargestScale);
  if (stored_scales_) scale = as_f16(scale);
  scales_(row, group) = scale;
  zeros_(row, group) =
      is_symmetric(packing_)
          ? float(packing_.zero)
          : round_even(std::clamp(rounded(-low / scale), -kLargestZero, kLargestZero));
}

/// Of the last `forward`.
GroupGrid WeightQuantizer::grid(int64_t row, int64_t group) const {
  const float zero = zeros_(row, group);
  return {scales_(row, group), -zero, float(packing_.max_code()) - zero};
}

/// w's code minus the zero point.
float WeightQuantizer::level(const GroupGrid& grid, float w) const {
  return f16_ ? grid.nearest(as_f16(w / grid.scale)) : grid.level(w);
}

Clipping WeightQuantizer::searched(ThreadPool& pool, const Matrix& w, const GridOptions& options,
                                   std::span<const float> importance) const {
  Clipping start(rows_, groups_, Clipping::kStart);
  const int steps = groups_ == 1 ? options.row_steps : options.group_steps;
  pool.parallel_for(rows_, 4, [&](int64_t begin, int64_t end, int) {
    std::vector<float> masked;
    for (int64_t r = begin; r < end; ++r) {
      const float* row = live(w.row(r), masked);
      for (int64_t g = 0; g < groups_; ++g) {
        const int64_t first = g * group_, n = std::min(group_, cols_ - first);
        const std::span group(row + first, size_t(n));
        const auto counts =
            importance.empty() ? importance : importance.subspan(size_t(first), size_t(n));
        const Grid grid = fit_grid(group, options, steps, counts);
        const Range ends = range(group.data(), n);
        const float span = std::max(std::fabs(ends.most), std::fabs(ends.least));
        const bool symmetric = is_symmetric(packing_);
        const float top = grid.value(uint8_t(packing_.max_code())), bottom = grid.value(0);
        start.upper(r, g) = symmetric ? start_of(-bottom, span) : start_of(top, ends.most);
        start.lower(r, g) = symmetric ? start.upper(r, g) : start_of(bottom, ends.least);
      }
    }
  });
  return start;
}

void WeightQuantizer::forward(ThreadPool& pool, const Matrix& w, const Clipping& clipping,
                              Matrix& out) {
  pool.parallel_for(rows_, 8, [&](int64_t begin, int64_t end, int) {
    std::vector<float> masked;
    for (int64_t r = begin; r < end; ++r) {
      const float* row = live(w.row(r), masked);
      for (int64_t g = 0; g < groups_; ++g) {
        const int64_t first = g * group_, n = std::min(group_, cols_ - first);
        const float* from = row + first;
        const Range range = this->range(from, n);
        if (std::isnan(range.least)) {
          throw Error({.what = "a weight is not finite",
                       .where = fmt::format("row {}", r),
                       .hint = "if it has been learned, lower --let-lr"});
        }
        fit(r, g, range, clipping);
        const GroupGrid grid = this->grid(r, g);
        float* to = out.row(r).data() + first;
        if (f16_) {
          for (int64_t i = 0; i < n; ++i) to[i] = grid.scale * level(grid, from[i]);
        } else {
          quantize_group(grid, from, n, to);
        }
      }
      for (const uint32_t k : weak_) out(r, k) = weak_weight(w, r, k);
    }
  });
}

void WeightQuantizer::backward(ThreadPool& pool, const Matrix& w, const Clipping& clipping,
                               Matrix& gradient, Clipping& d_clipping, bool to_weights) const {
  pool.parallel_for(rows_, 8, [&](int64_t begin, int64_t end, int) {
    std::vector<float> masked, d_weak(weak_.size());
    for (int64_t r = begin; r < end; ++r) {
      const float* row = live(w.row(r), masked);
      float* d = gradient.row(r).data();
      for (size_t i = 0; i < weak_.size(); ++i) d_weak[i] = std::exchange(d[weak_[i]], 0.0f);
      for (int64_t g = 0; g < groups_; ++g) {
        const int64_t first = g * group_, n = std::min(group_, cols_ - first);
        backward_group(r, g, row + first, n, d + first, clipping, d_clipping, to_weights);
      }
      for (size_t i = 0; i < weak_.size(); ++i) d[weak_[i]] = d_weak[i];
    }
  });
}

void WeightQuantizer::backward_group(int64_t row, int64_t group, const float* w, int64_t n,
                                     float* d, const Clipping& clipping, Clipping& d_clipping,
                                     bool to_weights) const {
  const GroupGrid grid = this->grid(row, group);
  const Range r = range(w, n);
  const float upper = factor(clipping.upper, row, group);
  const float lower = factor(clipping.lower, row, group);
  const float high = upper * r.most, low = lower * r.least;
  float d_high = 0, d_low = 0;
  if (is_symmetric(packing_)) {
    const float ds = scale_gradient(grid, w, n, d);
    const float span = std::max(std::fabs(high), std::fabs(low)) / float(packing_.zero);
    const float d_span = span < kLeastScale || span > kLargestScale ? 0 : ds / float(packing_.zero);
    const float share = std::fabs(high) == std::fabs(low) ? 0.5f : 1.0f;
    if (std::fabs(high) >= std::fabs(low)) d_high = share * std::copysign(d_span, d_span * high);
    if (std::fabs(low) >= std::fabs(high)) d_low = share * std::copysign(d_span, d_span * low);
  } else {
    const auto steps = float(packing_.max_code());
    const float span = (high - low) / steps;
    const bool moves = span >= kLeastScale && span <= kLargestScale;
    if (moves && bounds_ == Bounds::together) {
      d_high = scale_gradient(grid, w, n, d) / steps;
      d_low = -d_high;
    } else if (moves) {
      const EndGradients ends = end_gradients(grid, w, n, d);
      d_high = ends.scale / steps + ends.high;
      d_low = -ends.scale / steps + ends.low;
    }
  }
  if (!clipping.upper.empty()) {
    d_clipping.upper(row, group) = d_high * r.most * upper * (1 - upper);
    d_clipping.lower(row, group) = d_low * r.least * lower * (1 - lower);
  }
  if (!to_weights) return;
  pass_gradient(grid, w, n, d);
  add_where_equal(w, n, r.most, upper * d_high / float(count_equal(w, n, r.most)), d);
  add_where_equal(w, n, r.least, lower * d_low / float(count_equal(w, n, r.least)), d);
}

QuantizedLinear WeightQuantizer::finish(const Matrix& w) const {
  Packing packing = packing_;
  const auto top = float(packing.max_code());
  if (!is_symmetric(packing)) {
    const auto zeros = zeros_.values();
    const bool inside =
        std::all_of(zeros.begin(), zeros.end(), [&](float z) { return z >= 0 && z <= top; });
    packing.zero_mode = inside ? ZeroMode::code_width : ZeroMode::i16;
  }
  QuantizedLinear q(rows_, cols_, packing, weak_);
  for (int64_t r = 0; r < rows_; ++r) {
    for (int64_t g = 0; g < groups_; ++g) q.grid(r, g) = {scales_(r, g), int(zeros_(r, g))};
    for (int64_t k = 0; k < cols_; ++k) {
      const GroupGrid grid = this->grid(r, int64_t(q.column_group[size_t(k)]));
      q.codes[size_t(r * cols_ + k)] = uint8_t(int(level(grid, w(r, k)) - grid.low));
    }
    for (size_t i = 0; i < weak_.size(); ++i) {
      q.codes[size_t(r * cols_ + weak_[i])] = 0;
      q.weak_weights[size_t(r) * weak_.size() + i] = weak_weight(w, r, weak_[i]);
    }
  }
  return q;
}

}  // namespace oq::calibrate
