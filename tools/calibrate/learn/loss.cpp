#include "tools/calibrate/learn/loss.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "tools/calibrate/learn/vector_math.h"

namespace oq::calibrate {

double squared_error(std::span<const float> y, std::span<const float> target, double share,
                     std::span<float> d_y) {
  constexpr size_t kPiece = 1024;  // summed in fp32; pieces in fp64
  const double factor = share / double(y.size());
  const auto slope = float(2 * factor);
  double sum = 0;
  for (size_t first = 0; first < y.size(); first += kPiece) {
    const size_t n = std::min(kPiece, y.size() - first);
    const float *a = y.data() + first, *b = target.data() + first;
    float* d = d_y.data() + first;
    for (size_t i = 0; i < n; ++i) d[i] += slope * (a[i] - b[i]);
    sum += double(lane_sum(int64_t(n), [&](int64_t i) { return (a[i] - b[i]) * (a[i] - b[i]); }));
  }
  return sum * factor;
}

double relative_error(std::span<const float> y, std::span<const float> target, int64_t cols,
                      double share, std::span<float> d_y) {
  constexpr double kLeast = 1e-12;  // of a target's square
  const int64_t rows = int64_t(y.size()) / cols;
  double sum = 0;
  for (int64_t t = 0; t < rows; ++t) {
    const float *a = y.data() + t * cols, *b = target.data() + t * cols;
    const double size = double(lane_sum(cols, [&](int64_t i) { return b[i] * b[i]; }));
    const double row_share = share * double(cols) / (double(rows) * std::max(size, kLeast));
    sum += squared_error({a, size_t(cols)}, {b, size_t(cols)}, row_share,
                         d_y.subspan(size_t(t * cols), size_t(cols)));
  }
  return sum;
}

double log_cosine(std::span<const float> y, std::span<const float> target, int64_t cols,
                  double share, std::span<float> d_y) {
  constexpr double kLeast = 1e-8;  // of the product of lengths, as in torch
  const int64_t rows = int64_t(y.size()) / cols;
  const auto dot = [&](const float* a, const float* b) {
    return double(lane_sum(cols, [&](int64_t i) { return a[i] * b[i]; }));
  };
  struct Row {
    double inverse, cosine, square;  ///< 1 / (|y| |t|), cos, |y|^2
  };
  std::vector<Row> all;
  double mean = 0;
  for (int64_t t = 0; t < rows; ++t) {
    const float *a = y.data() + t * cols, *b = target.data() + t * cols;
    const double square = std::max(dot(a, a), kLeast * kLeast);
    const double inverse = 1 / std::max(std::sqrt(square * dot(b, b)), kLeast);
    all.push_back({inverse, dot(a, b) * inverse, square});
    mean += all.back().cosine / double(rows);
  }
  // d cos / dy = t / (|y| |t|) - cos y / |y|^2, and d(-log |m|) = -dm / m.
  const double outer = -share / (mean * double(rows));
  for (int64_t t = 0; t < rows; ++t) {
    const float *a = y.data() + t * cols, *b = target.data() + t * cols;
    float* d = d_y.data() + t * cols;
    const auto along = float(outer * all[size_t(t)].inverse);
    const auto back = float(outer * all[size_t(t)].cosine / all[size_t(t)].square);
    for (int64_t i = 0; i < cols; ++i) d[i] += along * b[i] - back * a[i];
  }
  return -share * std::log(std::fabs(mean));
}

double map_divergence(std::span<const float> p, std::span<const float> q, int64_t tokens,
                      double share, std::span<float> d_p) {
  constexpr float kLeast = 1e-6f;  // added to both: a probability may be 0
  const auto factor = float(share / double(tokens));
  double sum = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    const float *a = p.data() + t * tokens, *b = q.data() + t * tokens;
    float* d = d_p.data() + t * tokens;
    for (int64_t j = 0; j <= t; ++j) {  // nothing lies beyond the token itself
      const float ratio = std::log((a[j] + kLeast) / (b[j] + kLeast));
      sum += double((a[j] - b[j]) * ratio);
      d[j] += factor * (ratio + (a[j] - b[j]) / (a[j] + kLeast));
    }
  }
  return sum * share / double(tokens);
}

}  // namespace oq::calibrate
