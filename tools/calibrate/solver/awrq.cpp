#include "tools/calibrate/solver/awrq.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "format/error.h"
#include "kernels/activation_grid.h"

namespace oq::calibrate {
namespace {

/// The range of a row's live channels.
struct Range {
  float low = INFINITY, high = -INFINITY;

  void add(float x) {
    low = std::min(low, x);
    high = std::max(high, x);
  }
};

}  // namespace

Matrix reformulate(ThreadPool& pool, const Matrix& w, const Matrix& cross,
                   const InverseFactor& factor) {
  const auto& order = factor.columns.order;
  const auto cols = int64_t(order.size());
  if (w.cols() != cols || cross.rows() != cols || cross.cols() != cols) {
    throw Error({.what = "weights or cross moment do not fit the Hessian",
                 .expected = fmt::format("{} columns", cols),
                 .found = fmt::format("{} and {} x {}", w.cols(), cross.rows(), cross.cols())});
  }
  check_finite(cross, "the cross moment");
  Matrix result = w;
  for (int64_t r = 0; r < w.rows(); ++r) {
    for (uint32_t k : factor.dead) result(r, k) = 0;
  }
  // G = W M, then G H^-1 = (G U^T) U in the factor's order.
  Matrix g(w.rows(), cols), placed(w.rows(), cols);
  multiply(pool, 1, result, cross, false, 0, g);
  for (int64_t r = 0; r < w.rows(); ++r) {
    for (int64_t p = 0; p < cols; ++p) placed(r, p) = g(r, order[size_t(p)]);
  }
  multiply_upper(pool, placed, factor.upper, true);
  multiply_upper(pool, placed, factor.upper, false);
  for (int64_t r = 0; r < w.rows(); ++r) {
    for (int64_t p = 0; p < cols; ++p) result(r, order[size_t(p)]) += placed(r, p);
    for (uint32_t k : factor.dead) result(r, k) = 0;
  }
  check_finite(result, "the reformulated weight");
  return result;
}

void quantize_activations(ThreadPool& pool, std::span<float> x, int64_t channels, int bits,
                          bool per_tensor, std::span<const uint32_t> weak) {
  const int64_t tokens = int64_t(x.size()) / channels;
  std::vector<uint8_t> live(size_t(channels), 1);
  for (uint32_t k : weak) live[k] = 0;
  std::vector<Range> ranges(static_cast<size_t>(tokens));
  pool.parallel_for(tokens, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const float* row = x.data() + t * channels;
      for (int64_t k = 0; k < channels; ++k) {
        if (live[size_t(k)]) ranges[size_t(t)].add(row[k]);
      }
    }
  });
  if (per_tensor && tokens > 0) {
    Range all;
    for (const Range& r : ranges) {
      all.add(r.low);
      all.add(r.high);
    }
    std::fill(ranges.begin(), ranges.end(), all);
  }
  pool.parallel_for(tokens, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = x.data() + t * channels;
      const auto grid = ActivationGrid::of(ranges[size_t(t)].low, ranges[size_t(t)].high, bits);
      for (int64_t k = 0; k < channels; ++k) {
        if (live[size_t(k)]) row[k] = grid.scale * (grid.code(row[k]) - grid.zero);
      }
    }
  });
}

}  // namespace oq::calibrate
