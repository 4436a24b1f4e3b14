#pragma once

#include "kernels/cpu/simd/block.h"

/// Products of unsigned codes with signed activations for one panel of 8 rows in 256-bit vectors
/// or, with AVX-512, for two side by side in 512-bit ones.
namespace oq::cpu::OQ_ISA {

#if defined(__AVX512VNNI__)

constexpr int kTilePanels = 2;
constexpr int kMostTokens = 8;  ///< of 32 registers, 8 hold codes and 8 the sums of 8 tokens

template <>
struct Lanes<2> {
  using Codes = __m512i;
  using Ints = __m512i;
  using Floats = __m512;

  static Codes join(const __m256i* panel) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(panel[0]), panel[1], 1);
  }
  static Floats join(const __m256* panel) {
    return _mm512_insertf32x8(_mm512_castps256_ps512(panel[0]), panel[1], 1);
  }
  static void split(Floats v, __m256* panel) {
    panel[0] = _mm512_castps512_ps256(v);
    panel[1] = _mm512_extractf32x8_ps(v, 1);
  }
  static void split(Ints v, __m256i* panel) {
    panel[0] = _mm512_castsi512_si256(v);
    panel[1] = _mm512_extracti64x4_epi64(v, 1);
  }
  static Floats all(float x) { return _mm512_set1_ps(x); }
};
inline __m512i add(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }
inline __m512 floats(__m512i v) { return _mm512_cvtepi32_ps(v); }
inline __m512 fmadd(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
inline __m512 fnmadd(__m512 a, __m512 b, __m512 c) { return _mm512_fnmadd_ps(a, b, c); }

inline __m256i add_products(__m256i sum, __m256i codes, int32_t four) {
  return _mm256_dpbusd_epi32(sum, codes, _mm256_set1_epi32(four));
}
inline __m512i add_products(__m512i sum, __m512i codes, int32_t four) {
  return _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(four));
}

/// `vpdpbusd` sums four products of bytes into 32 bits. The halves take turns: a chain of sums
/// would wait for itself.
template <int kWidth, int kPanels>
inline __attribute__((always_inline)) void half_dots(
    const typename Lanes<kPanels>::Codes codes[kCodeVectors], const int8_t* x,
    typename Lanes<kPanels>::Ints sum[2]) {
  sum[0] = sum[1] = typename Lanes<kPanels>::Ints{};
#pragma GCC unroll 8
  for (int i = 0; i < kCodeVectors; ++i) {
    const int h = i % 2, d = h * kHalf + i / 2;
    int32_t four;
    std::memcpy(&four, x + 4 * d, 4);
    sum[h] = add_products(sum[h], codes[d], four);
  }
}

/// The high nibbles of a single panel stay where they are, 16 times too large, which 32 bits have
/// room for: a shift of the sum takes the place of four shifts of codes.
template <>
class Block<4, 1> {
 public:
  static constexpr int kOffset = 0;

  explicit Block(const uint8_t* const panel[1]) {
#pragma GCC unroll 4
    for (int d = 0; d < kHalf; ++d) {
      const __m256i v = load_bytes(panel[0] + 32 * d);
      codes_[d] = _mm256_and_si256(v, low_ones(4, 0));
      codes_[d + kHalf] = _mm256_and_si256(v, low_ones(4, 4));
    }
  }
  void dots(const int8_t* x, __m256i sum[2]) const {
    half_dots<8, 1>(codes_, x, sum);
    sum[1] = _mm256_srai_epi32(sum[1], 4);
  }

 private:
  __m256i codes_[kCodeVectors];
};

#else

constexpr int kTilePanels = 1;
constexpr int kMostTokens = 4;

/// Four int8 activations in every lane.
inline __m256i broadcast4(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}

/// How many products of `maddubs` an int16 holds: each is at most 2 * (2^bits - 1) * 128 in
/// magnitude. 5 bits: 4 * 2 * 31 * 128 = 31744 < 32768. 7 bits: 2 * 127 * 128 = 32512, just one.
constexpr int int16_room(int bits) {
  const int room = 32767 / (2 * ((1 << bits) - 1) * 128);
  return room < kHalf ? room : kHalf;
}
static_assert(int16_room(5) == 4 && int16_room(6) == 2 && int16_room(7) == 1);

/// `maddubs` sums two products of bytes into 16 bits, which have room for int16_room such sums.
template <int kWidth, int kPanels>
inline __attribute__((always_inline)) void half_dots(
    const typename Lanes<kPanels>::Codes codes[kCodeVectors], const int8_t* x,
    typename Lanes<kPanels>::Ints sum[2]) {
  constexpr int kRoom = int16_room(kWidth);
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
  for (int first = 0; first < kCodeVectors; first += kRoom) {
    __m256i pairs = _mm256_maddubs_epi16(codes[first], broadcast4(x + 4 * first));
#pragma GCC unroll 4
    for (int d = first + 1; d < first + kRoom; ++d) {
      pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes[d], broadcast4(x + 4 * d)));
    }
    const __m256i wide = _mm256_madd_epi16(pairs, ones);
    __m256i& to = sum[first / kHalf];
    to = first % kHalf == 0 ? wide : _mm256_add_epi32(to, wide);
  }
}

/// 8-bit codes times activations overflow int16 in one step: the two nibbles go separately.
template <>
class Block<8, 1> {
 public:
  static constexpr int kOffset = 0;

  explicit Block(const uint8_t* const panel[1]) {
    for (int d = 0; d < kCodeVectors; ++d) {
      const __m256i v = load_bytes(panel[0] + 32 * d);
      low_[d] = field(v, 0, 4);
      high_[d] = field(v, 4, 4);
    }
  }
  void dots(const int8_t* x, __m256i sum[2]) const {
    __m256i tops[2];
    half_dots<4, 1>(high_, x, tops);
    half_dots<4, 1>(low_, x, sum);
    for (int h = 0; h < 2; ++h) sum[h] = _mm256_add_epi32(sum[h], _mm256_slli_epi32(tops[h], 4));
  }

 private:
  __m256i low_[kCodeVectors], high_[kCodeVectors];
};

#endif

}  // namespace oq::cpu::OQ_ISA
