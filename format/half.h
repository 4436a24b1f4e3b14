#pragma once

#include <bit>
#include <cstdint>

namespace oq {

/// A 16-bit float as stored. Distinct types, so that an overload cannot mistake one for an integer.
struct f16 {
  uint16_t bits = 0;
};
struct bf16 {
  uint16_t bits = 0;
};

/// Exact, subnormals, infinities and NaN included.
inline float to_float(f16 h) {
  const uint32_t sign = uint32_t(h.bits & 0x8000u) << 16;
  const uint32_t exponent = (h.bits >> 10) & 0x1Fu;
  const uint32_t mantissa = h.bits & 0x3FFu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = float(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  const uint32_t e = exponent == 0x1F ? 0xFFu : exponent + (127 - 15);
  return std::bit_cast<float>(sign | (e << 23) | (mantissa << 13));
}

inline float to_float(bf16 h) { return std::bit_cast<float>(uint32_t(h.bits) << 16); }
inline float to_float(float x) { return x; }

/// Round to nearest even. Beyond 65504 gives infinity; NaN stays NaN.
inline f16 to_f16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const uint16_t sign = uint16_t((u >> 16) & 0x8000u);
  const uint32_t a = u & 0x7FFFFFFFu;
  if (a >= 0x7F800000u) return {uint16_t(sign | 0x7C00u | (a > 0x7F800000u ? 0x200u : 0u))};
  if (a < 0x38800000u) {  // subnormal result: the FPU rounds to a multiple of 2^-24 for us
    const float r = std::bit_cast<float>(a) + 0.5f;  // ulp of [0.5, 1) is 2^-24
    return {uint16_t(sign | (std::bit_cast<uint32_t>(r) - 0x3F000000u))};
  }
  const uint32_t rounded = a + 0xFFFu + ((a >> 13) & 1u);
  if (rounded >= 0x47800000u) return {uint16_t(sign | 0x7C00u)};
  return {uint16_t(sign | ((rounded - 0x38000000u) >> 13))};
}

/// Round to nearest even; NaN stays NaN.
inline bf16 to_bf16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return {uint16_t((u >> 16) | 0x40u)};
  return {uint16_t((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16)};
}

}  // namespace oq
