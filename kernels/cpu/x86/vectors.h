#pragma once

#include <cstdint>
#include <cstring>

#include <immintrin.h>

#include "format/half.h"

/// The vectors of kernels/cpu/simd on x86. What every function promises stands in simd/simd.h.
///   avx2    AVX2, FMA, F16C
///   avx512  and AVX-512 F, VL, BW, DQ and VNNI, in vectors of 256 bits: twice the registers, and
///           products of bytes summed into 32 bits by one instruction
namespace oq::cpu::OQ_ISA {

using Floats = __m256;
using Ints = __m256i;
using Bytes = __m256i;

#if defined(__AVX512VL__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

inline Floats all(float x) { return _mm256_set1_ps(x); }
inline Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
inline Floats load_floats(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Floats load_floats(const bf16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline Floats load_floats(const uint8_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline Floats load_floats(const int16_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }

/// Ones in the first `n` lanes.
inline __m256i first_lanes(int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), lane);
}
inline Floats load_first(const float* p, int64_t n) {
  return _mm256_maskload_ps(p, first_lanes(n));
}
inline void store_first(float* p, int64_t n, Floats v) {
  _mm256_maskstore_ps(p, first_lanes(n), v);
}

inline Floats fmadd(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats fnmadd(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
inline Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }
inline Floats abs(Floats v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
inline Floats nearest(Floats v) {
  return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Floats times_power_of_2(Floats v, Floats n) {
  const __m256i e = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), e));
}
inline Floats zero_where_less(Floats a, Floats b, Floats v) {
  return _mm256_andnot_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ), v);
}
inline float sum_lanes(Floats v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  s = _mm_add_ss(s, _mm_movehdup_ps(s));
  return _mm_cvtss_f32(s);
}
inline float max_lane(Floats v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  m = _mm_max_ss(m, _mm_movehdup_ps(m));
  return _mm_cvtss_f32(m);
}

inline Floats floats(Ints v) { return _mm256_cvtepi32_ps(v); }
inline Ints nearest_ints(Floats v) { return _mm256_cvtps_epi32(v); }
inline Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline int32_t sum_lanes(Ints v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
inline void store_bytes(const Ints v[4], int8_t* p) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i packed =
      _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(packed, order));
}

#if defined(__AVX512VL__)
using Doubles = __m512d;

inline Doubles all_doubles(double x) { return _mm512_set1_pd(x); }
inline Doubles load_doubles(const double* p) { return _mm512_loadu_pd(p); }
inline Doubles doubles(Ints v) { return _mm512_cvtepi32_pd(v); }
inline Doubles doubles(Floats v) { return _mm512_cvtps_pd(v); }
inline Doubles fmadd(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
inline Doubles fnmadd(Doubles a, Doubles b, Doubles c) { return _mm512_fnmadd_pd(a, b, c); }
inline Floats floats(Doubles v) { return _mm512_cvtpd_ps(v); }
#else
struct Doubles {
  __m256d low, high;
};

inline Doubles operator*(Doubles a, Doubles b) { return {a.low * b.low, a.high * b.high}; }
inline Doubles all_doubles(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
inline Doubles load_doubles(const double* p) {
  return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)};
}
inline Doubles doubles(Ints v) {
  return {_mm256_cvtepi32_pd(_mm256_castsi256_si128(v)),
          _mm256_cvtepi32_pd(_mm256_extracti128_si256(v, 1))};
}
inline Doubles doubles(Floats v) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
}
inline Doubles fmadd(Doubles a, Doubles b, Doubles c) {
  return {_mm256_fmadd_pd(a.low, b.low, c.low), _mm256_fmadd_pd(a.high, b.high, c.high)};
}
inline Doubles fnmadd(Doubles a, Doubles b, Doubles c) {
  return {_mm256_fnmadd_pd(a.low, b.low, c.low), _mm256_fnmadd_pd(a.high, b.high, c.high)};
}
inline Floats floats(Doubles v) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(v.low)),
                              _mm256_cvtpd_ps(v.high), 1);
}
#endif

/// Loads are what a packed kernel has least of (two a cycle); without the empty asm, a compiler
/// folds one load into every use of a vector of codes, and so reads it two to four times.
inline Bytes load_bytes(const uint8_t* p) {
  __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
#if defined(__AVX512VL__)
  asm("" : "+v"(v));
#endif
  return v;
}
inline __m256i low_ones(int bits, int shift) {
  return _mm256_set1_epi8(char(((1 << bits) - 1) << shift));
}
inline Bytes field(Bytes v, int shift, int bits) {
  const __m256i shifted = shift == 0 ? v : _mm256_srli_epi16(v, shift);
  return bits == 8 ? shifted : _mm256_and_si256(shifted, low_ones(bits, 0));
}
inline Bytes or_field(Bytes a, Bytes v, int shift, int bits, int at) {
  const __m256i shifted = _mm256_srli_epi16(v, shift), mask = low_ones(bits, at);
#if defined(__AVX512VL__)
  return _mm256_ternarylogic_epi32(a, shifted, mask, 0xF8);
#else
  return _mm256_or_si256(a, _mm256_and_si256(shifted, mask));
#endif
}

/// By a 16-bit reciprocal on even and odd bytes.
template <int kDivisor>
inline Bytes divide(Bytes x) {
  const __m256i reciprocal = _mm256_set1_epi16(short(65536 / kDivisor + 1));
  const __m256i even = _mm256_mulhi_epu16(_mm256_and_si256(x, _mm256_set1_epi16(255)), reciprocal);
  const __m256i odd = _mm256_mulhi_epu16(_mm256_srli_epi16(x, 8), reciprocal);
  return _mm256_or_si256(even, _mm256_slli_epi16(odd, 8));
}
inline Bytes minus_5_times(Bytes a, Bytes b) {  // no carry between bytes below 26
  return _mm256_sub_epi8(a, _mm256_add_epi8(b, _mm256_slli_epi16(b, 2)));
}
inline Bytes at_most(Bytes v, uint8_t limit) {
  return _mm256_min_epu8(v, _mm256_set1_epi8(char(limit)));
}
inline Floats column(Bytes v, int c) {
  return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(v, 8 * c), _mm256_set1_epi32(255)));
}

class EightFields {
 public:
  explicit EightFields(int bits) : mask_(_mm256_set1_epi64x((1 << bits) - 1)) {
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    shift_low_ = _mm256_mul_epu32(lane, _mm256_set1_epi64x(bits));
    shift_high_ = _mm256_add_epi64(shift_low_, _mm256_set1_epi64x(4 * bits));
  }
  Floats operator()(uint64_t word) const {
    const __m256i eight = _mm256_set1_epi64x(int64_t(word));
    const __m256i low = _mm256_and_si256(_mm256_srlv_epi64(eight, shift_low_), mask_);
    const __m256i high = _mm256_and_si256(_mm256_srlv_epi64(eight, shift_high_), mask_);
    const __m256i even = _mm256_or_si256(low, _mm256_slli_epi64(high, 32));  // 0 4 1 5 2 6 3 7
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    return _mm256_cvtepi32_ps(_mm256_permutevar8x32_epi32(even, order));
  }

 private:
  __m256i mask_, shift_low_, shift_high_;
};

}  // namespace oq::cpu::OQ_ISA
