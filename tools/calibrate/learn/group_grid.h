#pragma once

#include <algorithm>
#include <cstdint>

#include "tools/calibrate/learn/vector_math.h"

namespace oq::calibrate {

/// Values of one group or token that share scale and zero point: Q(x) = scale * clip(R(x / scale),
/// low, high), where low = -zero and high = max_code - zero. R is rounding to even, and its
/// gradient counts as 1 (straight through). PRECOND of all: low and high are integers, |low| and
/// |high| < 2^21.
struct GroupGrid {
  float scale, low, high;

  /// The code minus the zero point of x.
  float level(float x) const { return nearest(x / scale); }
  /// The same of u = x / scale.
  float nearest(float u) const { return round_even(std::min(std::max(u, low), high)); }
};

inline void quantize_group(const GroupGrid& g, const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = g.scale * g.level(x[i]);
}

/// What one element of a group passes back: with u = x / scale and c = clip(R(u)), and m whether
/// R(u) was in range,
///   dx = m dQ        ds = (c - m u) dQ
struct ElementGradient {
  float x, scale;
};
inline ElementGradient element_gradient(const GroupGrid& g, float x, float dq) {
  const float u = x / g.scale;
  const float rounded = round_even(std::min(std::max(u, g.low - 1), g.high + 1));
  const float c = std::min(std::max(rounded, g.low), g.high);
  const bool inside = rounded == c;
  return {.x = inside ? dq : 0.0f, .scale = dq * (inside ? c - u : c)};
}

/// d scale of a group, d [n] being dQ.
inline float scale_gradient(const GroupGrid& g, const float* x, int64_t n, const float* d) {
  return lane_sum(n, [&](int64_t i) { return element_gradient(g, x[i], d[i]).scale; });
}

/// What a group passes back to the ends of its range, with Q(x) = low end + scale * code and the
/// zero point's rounding, too, taken as straight through: a clipped element follows the end that it
/// lies at, and the others move with the scale.
struct EndGradients {
  float scale;  ///< of what is not clipped
  float low, high;
};
inline EndGradients end_gradients(const GroupGrid& g, const float* x, int64_t n, const float* d) {
  const auto step = [&](int64_t i) {
    return round_even(std::min(std::max(x[i] / g.scale, g.low - 1), g.high + 1));
  };
  return {.scale = lane_sum(n,
                            [&](int64_t i) {
                              const float r = step(i);
                              return r < g.low || r > g.high ? 0.0f : d[i] * (r - x[i] / g.scale);
                            }),
          .low = lane_sum(n, [&](int64_t i) { return step(i) < g.low ? d[i] : 0.0f; }),
          .high = lane_sum(n, [&](int64_t i) { return step(i) > g.high ? d[i] : 0.0f; })};
}

/// d becomes dx, without what goes through scale and range.
inline void pass_gradient(const GroupGrid& g, const float* x, int64_t n, float* d) {
  for (int64_t i = 0; i < n; ++i) d[i] = element_gradient(g, x[i], d[i]).x;
}

/// How many of x equal v.
inline int64_t count_equal(const float* x, int64_t n, float v) {
  int32_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += x[i] == v ? 1 : 0;
  return count;
}

/// Adds `gradient` to the elements that equal v.
inline void add_where_equal(const float* x, int64_t n, float v, float gradient, float* d) {
  for (int64_t i = 0; i < n; ++i) d[i] += x[i] == v ? gradient : 0.0f;
}

}  // namespace oq::calibrate
