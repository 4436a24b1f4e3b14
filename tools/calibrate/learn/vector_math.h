#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "format/half.h"

namespace oq::calibrate {

/// Plain arithmetic that a compiler vectorizes in a loop.

/// x rounded to the nearest integer, ties to even. PRECOND: |x| < 2^22.
inline float round_even(float x) {
  constexpr float kShift = 0x1.8p23f;
  return (x + kShift) - kShift;
}

/// x as f16 holds it: a step of arithmetic in f16 is one in fp32 and this.
inline float as_f16(float x) { return to_float(to_f16(x)); }

/// e^x within 2 units in the last place on [-87, 88]; below it is as at -87 (1e-38), above as at
/// 88. e^x = 2^n e^r with |r| <= ln 2 / 2, ln 2 taken off in two parts (Cody and Waite 1980), and
/// the Taylor polynomial of degree 7.
inline float fast_exp(float x) {
  x = std::min(std::max(x, -87.0f), 88.0f);
  const float n = round_even(x * 1.44269504f);
  // n in the low bits of its sum with 1.5 x 2^23: a conversion to int is not defined for NaN.
  const auto exponent = std::bit_cast<uint32_t>(n + 0x1.8p23f) + 127;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>(exponent << 23);
}

inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

/// Sums in eight lanes, so that the order is fixed and the loop is vectorized. f(i) for i < n.
template <class F>
float lane_sum(int64_t n, const F& f) {
  float lanes[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int64_t j = 0; j < 8; ++j) lanes[j] += f(i + j);
  }
  for (int64_t j = 0; i < n; ++i, ++j) lanes[j] += f(i);
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

}  // namespace oq::calibrate
