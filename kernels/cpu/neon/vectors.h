#pragma once

#include <cstdint>
#include <cstring>

#include <arm_neon.h>

#include "format/half.h"

/// The vectors of kernels/cpu/simd on AArch64: two registers of 128 bits each. What every function
/// promises stands in simd/simd.h. Sums of lanes add in the order of x86's.
///   neon           what every AArch64 has (Armv8.0)
///   neon_dotprod   and sums of four products of bytes in one instruction (sdot)
namespace oq::cpu::OQ_ISA {

struct Floats {
  float32x4_t low, high;
};
struct Ints {
  int32x4_t low, high;
};
struct Bytes {
  uint8x16_t low, high;
};

constexpr int kRegisters = 16;

inline Floats operator+(Floats a, Floats b) { return {a.low + b.low, a.high + b.high}; }
inline Floats operator-(Floats a, Floats b) { return {a.low - b.low, a.high - b.high}; }
inline Floats operator*(Floats a, Floats b) { return {a.low * b.low, a.high * b.high}; }
inline Floats operator/(Floats a, Floats b) { return {a.low / b.low, a.high / b.high}; }
inline Floats operator-(Floats v) { return {-v.low, -v.high}; }

inline Floats all(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline Floats load_floats(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline Floats load_floats(const f16* p) {
  const float16x8_t v = vreinterpretq_f16_u16(vld1q_u16(&p->bits));
  return {vcvt_f32_f16(vget_low_f16(v)), vcvt_high_f32_f16(v)};
}
inline Floats load_floats(const bf16* p) {
  const uint16x8_t v = vld1q_u16(&p->bits);
  return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(v), 16)),
          vreinterpretq_f32_u32(vshll_high_n_u16(v, 16))};
}
inline Floats load_floats(const uint8_t* p) {
  const uint16x8_t v = vmovl_u8(vld1_u8(p));
  return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(v))), vcvtq_f32_u32(vmovl_high_u16(v))};
}
inline Floats load_floats(const int16_t* p) {
  const int16x8_t v = vld1q_s16(p);
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), vcvtq_f32_s32(vmovl_high_s16(v))};
}
inline void store(float* p, Floats v) {
  vst1q_f32(p, v.low);
  vst1q_f32(p + 4, v.high);
}
inline Floats load_first(const float* p, int64_t n) {
  if (n >= 8) return load_floats(p);
  float buffer[8] = {};
  std::memcpy(buffer, p, size_t(n) * sizeof(float));
  return load_floats(buffer);
}
inline void store_first(float* p, int64_t n, Floats v) {
  if (n >= 8) return store(p, v);
  float buffer[8];
  store(buffer, v);
  std::memcpy(p, buffer, size_t(n) * sizeof(float));
}

inline Floats fmadd(Floats a, Floats b, Floats c) {
  return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)};
}
inline Floats fnmadd(Floats a, Floats b, Floats c) {
  return {vfmsq_f32(c.low, a.low, b.low), vfmsq_f32(c.high, a.high, b.high)};
}
inline Floats min(Floats a, Floats b) {
  return {vminq_f32(a.low, b.low), vminq_f32(a.high, b.high)};
}
inline Floats max(Floats a, Floats b) {
  return {vmaxq_f32(a.low, b.low), vmaxq_f32(a.high, b.high)};
}
inline Floats abs(Floats v) { return {vabsq_f32(v.low), vabsq_f32(v.high)}; }
inline Floats nearest(Floats v) { return {vrndnq_f32(v.low), vrndnq_f32(v.high)}; }
inline float sum_lanes(Floats v) {
  const float32x4_t s = vaddq_f32(v.low, v.high);
  return vaddv_f32(vadd_f32(vget_low_f32(s), vget_high_f32(s)));
}
inline float max_lane(Floats v) { return vmaxvq_f32(vmaxq_f32(v.low, v.high)); }

inline Floats floats(Ints v) { return {vcvtq_f32_s32(v.low), vcvtq_f32_s32(v.high)}; }
inline Ints nearest_ints(Floats v) { return {vcvtnq_s32_f32(v.low), vcvtnq_s32_f32(v.high)}; }
inline Ints add(Ints a, Ints b) { return {a.low + b.low, a.high + b.high}; }
inline int32_t sum_lanes(Ints v) { return vaddvq_s32(vaddq_s32(v.low, v.high)); }
inline void store_bytes(const Ints v[4], int8_t* p) {
  for (int i = 0; i < 4; ++i) {
    const int16x8_t half = vqmovn_high_s32(vqmovn_s32(v[i].low), v[i].high);
    vst1_s8(p + 8 * i, vqmovn_s16(half));
  }
}

/// Lanes 2 i and 2 i + 1 in v[i].
struct Doubles {
  float64x2_t v[4];
};

template <class F>
inline Doubles each(F f) {
  return {{f(0), f(1), f(2), f(3)}};
}
inline Doubles operator*(const Doubles& a, const Doubles& b) {
  return each([&](int i) { return a.v[i] * b.v[i]; });
}
inline Doubles all_doubles(double x) {
  return each([&](int) { return vdupq_n_f64(x); });
}
inline Doubles load_doubles(const double* p) {
  return each([&](int i) { return vld1q_f64(p + 2 * i); });
}
inline Doubles doubles(Floats v) {
  return {{vcvt_f64_f32(vget_low_f32(v.low)), vcvt_high_f64_f32(v.low),
           vcvt_f64_f32(vget_low_f32(v.high)), vcvt_high_f64_f32(v.high)}};
}
inline Doubles doubles(Ints v) {
  return {{vcvtq_f64_s64(vmovl_s32(vget_low_s32(v.low))), vcvtq_f64_s64(vmovl_high_s32(v.low)),
           vcvtq_f64_s64(vmovl_s32(vget_low_s32(v.high))), vcvtq_f64_s64(vmovl_high_s32(v.high))}};
}
inline Doubles fmadd(const Doubles& a, const Doubles& b, const Doubles& c) {
  return each([&](int i) { return vfmaq_f64(c.v[i], a.v[i], b.v[i]); });
}
inline Doubles fnmadd(const Doubles& a, const Doubles& b, const Doubles& c) {
  return each([&](int i) { return vfmsq_f64(c.v[i], a.v[i], b.v[i]); });
}
inline Floats floats(const Doubles& v) {
  return {vcvt_high_f32_f64(vcvt_f32_f64(v.v[0]), v.v[1]),
          vcvt_high_f32_f64(vcvt_f32_f64(v.v[2]), v.v[3])};
}

inline float32x4_t times_power_of_2(float32x4_t v, float32x4_t n) {
  const int32x4_t e = vshlq_n_s32(vcvtnq_s32_f32(n), 23);
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(v), e));
}
inline Floats times_power_of_2(Floats v, Floats n) {
  return {times_power_of_2(v.low, n.low), times_power_of_2(v.high, n.high)};
}
inline float32x4_t zero_where(uint32x4_t mask, float32x4_t v) {
  return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), mask));
}
inline Floats zero_where_less(Floats a, Floats b, Floats v) {
  return {zero_where(vcltq_f32(a.low, b.low), v.low),
          zero_where(vcltq_f32(a.high, b.high), v.high)};
}

inline Bytes load_bytes(const uint8_t* p) { return {vld1q_u8(p), vld1q_u8(p + 16)}; }
inline uint8x16_t low_ones(int bits, int shift) {
  return vdupq_n_u8(uint8_t(((1 << bits) - 1) << shift));
}
inline Bytes field(Bytes v, int shift, int bits) {
  if (shift > 0) v = {v.low >> shift, v.high >> shift};
  if (shift + bits == 8) return v;
  return {v.low & low_ones(bits, 0), v.high & low_ones(bits, 0)};
}
inline Bytes or_field(Bytes a, Bytes v, int shift, int bits, int at) {
  const uint8x16_t mask = low_ones(bits, at);
  return {vbslq_u8(mask, v.low >> shift, a.low), vbslq_u8(mask, v.high >> shift, a.high)};
}

/// By a reciprocal of 10 bits, 205 or 41, which is at most 0.2 / 1024 too large: a quotient is so
/// by less than 128 * 0.2 / 1024 = 0.025, and 1 / 25 is missing to the next whole one at least.
template <int kDivisor>
inline uint8x16_t divide(uint8x16_t x) {
  const uint8x16_t reciprocal = vdupq_n_u8(1024 / kDivisor + 1);
  const uint16x8_t low = vmull_u8(vget_low_u8(x), vget_low_u8(reciprocal));
  const uint16x8_t high = vmull_high_u8(x, reciprocal);
  return vuzp2q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high)) >> 2;
}
template <int kDivisor>
inline Bytes divide(Bytes x) {
  return {divide<kDivisor>(x.low), divide<kDivisor>(x.high)};
}
inline Bytes minus_5_times(Bytes a, Bytes b) {
  return {vmlsq_u8(a.low, b.low, vdupq_n_u8(5)), vmlsq_u8(a.high, b.high, vdupq_n_u8(5))};
}
inline Bytes at_most(Bytes v, uint8_t limit) {
  return {vminq_u8(v.low, vdupq_n_u8(limit)), vminq_u8(v.high, vdupq_n_u8(limit))};
}
inline float32x4_t column(uint8x16_t v, int c) {
  const uint32x4_t lanes = vreinterpretq_u32_u8(v) >> (8 * c);
  return vcvtq_f32_u32(lanes & vdupq_n_u32(255));
}
inline Floats column(Bytes v, int c) { return {column(v.low, c), column(v.high, c)}; }

class EightFields {
 public:
  explicit EightFields(int bits) : mask_(vdupq_n_u64((uint64_t(1) << bits) - 1)) {
    for (int i = 0; i < 8; ++i) right_[i] = -i * bits;
  }
  Floats operator()(uint64_t word) const {
    return {vcvtq_f32_u32(four(word, right_)), vcvtq_f32_u32(four(word, right_ + 4))};
  }

 private:
  uint32x4_t four(uint64_t word, const int64_t* right) const {
    const uint64x2_t eight = vdupq_n_u64(word);
    const uint64x2_t low = vshlq_u64(eight, vld1q_s64(right)) & mask_;
    const uint64x2_t high = vshlq_u64(eight, vld1q_s64(right + 2)) & mask_;
    return vmovn_high_u64(vmovn_u64(low), high);
  }

  uint64x2_t mask_;
  int64_t right_[8];  ///< shifts to the left, negative
};

}  // namespace oq::cpu::OQ_ISA
