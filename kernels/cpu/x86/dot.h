#pragma once

#include "kernels/cpu/x86/unpack.h"

/// Products of unsigned codes with signed activations, summed exactly in integers, for one panel of
/// 8 rows in 256-bit vectors or, with AVX-512, for two side by side in 512-bit ones.
namespace oq::cpu::OQ_ISA {

constexpr int kHalf = kCodeVectors / 2;  ///< vectors of codes that share an activation scale

/// A lane is a row of kPanels panels.
template <int kPanels>
struct Lanes;

template <>
struct Lanes<1> {
  using Ints = __m256i;
  using Floats = __m256;

  static Ints join(const __m256i* panel) { return panel[0]; }
  static Floats join(const __m256* panel) { return panel[0]; }
  static void split(Floats v, __m256* panel) { panel[0] = v; }
  static void split(Ints v, __m256i* panel) { panel[0] = v; }
  static Ints four(const int8_t* x) { return broadcast4(x); }
  static Floats all(float x) { return _mm256_set1_ps(x); }
  static Floats zero() { return _mm256_setzero_ps(); }
  static Floats floats(Ints v) { return _mm256_cvtepi32_ps(v); }
  static Floats fmadd(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
  static Floats fnmadd(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
  static Ints zero_ints() { return _mm256_setzero_si256(); }
  static Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
#if defined(__AVX512VNNI__)
  static Ints add_products(Ints sum, Ints codes, Ints x) {
    return _mm256_dpbusd_epi32(sum, codes, x);
  }
#endif
};

#if defined(__AVX512VNNI__)

template <>
struct Lanes<2> {
  using Ints = __m512i;
  using Floats = __m512;

  static Ints join(const __m256i* panel) {
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
  static Ints four(const int8_t* x) {
    int32_t word;
    std::memcpy(&word, x, 4);
    return _mm512_set1_epi32(word);
  }
  static Floats all(float x) { return _mm512_set1_ps(x); }
  static Floats zero() { return _mm512_setzero_ps(); }
  static Floats floats(Ints v) { return _mm512_cvtepi32_ps(v); }
  static Floats fmadd(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
  static Floats fnmadd(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
  static Ints zero_ints() { return _mm512_setzero_si512(); }
  static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static Ints add_products(Ints sum, Ints codes, Ints x) {
    return _mm512_dpbusd_epi32(sum, codes, x);
  }
};

/// sum[h] = sum over 16 columns of code * activation, per row, of both halves of a block; kWidth
/// bits bound the codes. `vpdpbusd` sums four products of bytes into 32 bits. The halves take
/// turns: a chain of sums would wait for itself.
template <int kWidth, class L>
inline __attribute__((always_inline)) void half_dots(const typename L::Ints codes[kCodeVectors],
                                                     const int8_t* x, typename L::Ints sum[2]) {
  sum[0] = sum[1] = L::zero_ints();
#pragma GCC unroll 8
  for (int i = 0; i < kCodeVectors; ++i) {
    const int h = i % 2, d = h * kHalf + i / 2;
    sum[h] = L::add_products(sum[h], codes[d], L::four(x + 4 * d));
  }
}

#else

/// How many products of `maddubs` an int16 holds: each is at most 2 * (2^bits - 1) * 128 in
/// magnitude. 5 bits: 4 * 2 * 31 * 128 = 31744 < 32768. 7 bits: 2 * 127 * 128 = 32512, just one.
constexpr int int16_room(int bits) {
  const int room = 32767 / (2 * ((1 << bits) - 1) * 128);
  return room < kHalf ? room : kHalf;
}
static_assert(int16_room(5) == 4 && int16_room(6) == 2 && int16_room(7) == 1);

/// sum[h] = sum over 16 columns of code * activation, per row, of both halves of a block; kWidth
/// bits bound the codes. `maddubs` sums two products of bytes into 16 bits, which have room for
/// int16_room such sums.
template <int kWidth, class L>
inline __attribute__((always_inline)) void half_dots(const __m256i codes[kCodeVectors],
                                                     const int8_t* x, __m256i sum[2]) {
  constexpr int kRoom = int16_room(kWidth);
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
  for (int first = 0; first < kCodeVectors; first += kRoom) {
    __m256i pairs = _mm256_maddubs_epi16(codes[first], L::four(x + 4 * first));
#pragma GCC unroll 4
    for (int d = first + 1; d < first + kRoom; ++d) {
      pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes[d], L::four(x + 4 * d)));
    }
    const __m256i wide = _mm256_madd_epi16(pairs, ones);
    __m256i& to = sum[first / kHalf];
    to = first % kHalf == 0 ? wide : _mm256_add_epi32(to, wide);
  }
}

#endif

/// A column block of `kBits`-bit codes of each panel, decoded once and multiplied with any number
/// of tokens.
template <int kBits, int kPanels>
class Block {
 public:
  using L = Lanes<kPanels>;

  explicit Block(const uint8_t* const panel[kPanels]) {
    __m256i own[kPanels][kCodeVectors];
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) unpack_fields<kBits>(panel[p], own[p]);
#pragma GCC unroll 8
    for (int d = 0; d < kCodeVectors; ++d) {
      const __m256i vectors[2] = {own[0][d], own[kPanels - 1][d]};
      codes_[d] = L::join(vectors);
    }
  }
  void dots(const int8_t* x, typename L::Ints sum[2]) const { half_dots<kBits, L>(codes_, x, sum); }

 private:
  typename L::Ints codes_[kCodeVectors];
};

#if defined(__AVX512VNNI__)

/// The high nibbles of a single panel stay where they are, 16 times too large, which 32 bits have
/// room for: a shift of the sum takes the place of four shifts of codes.
template <>
class Block<4, 1> {
 public:
  explicit Block(const uint8_t* const panel[1]) {
#pragma GCC unroll 4
    for (int d = 0; d < kHalf; ++d) {
      const __m256i v = in_register(load(panel[0] + 32 * d));
      codes_[d] = _mm256_and_si256(v, _mm256_set1_epi8(0x0f));
      codes_[d + kHalf] = _mm256_and_si256(v, _mm256_set1_epi8(char(0xf0)));
    }
  }
  void dots(const int8_t* x, __m256i sum[2]) const {
    half_dots<8, Lanes<1>>(codes_, x, sum);
    sum[1] = _mm256_srai_epi32(sum[1], 4);
  }

 private:
  __m256i codes_[kCodeVectors];
};

#else

/// 8-bit codes times activations overflow int16 in one step: the two nibbles go separately.
template <>
class Block<8, 1> {
 public:
  explicit Block(const uint8_t* const panel[1]) {
    const __m256i nibble = _mm256_set1_epi8(15);
    for (int d = 0; d < kCodeVectors; ++d) {
      const __m256i v = load(panel[0] + 32 * d);
      low_[d] = _mm256_and_si256(v, nibble);
      high_[d] = _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble);
    }
  }
  void dots(const int8_t* x, __m256i sum[2]) const {
    __m256i tops[2];
    half_dots<4, Lanes<1>>(high_, x, tops);
    half_dots<4, Lanes<1>>(low_, x, sum);
    for (int h = 0; h < 2; ++h) sum[h] = _mm256_add_epi32(sum[h], _mm256_slli_epi32(tops[h], 4));
  }

 private:
  __m256i low_[kCodeVectors], high_[kCodeVectors];
};

#endif

/// A w2* block of each panel: three column blocks.
template <int kPanels>
class FiveLevelBlock {
 public:
  using L = Lanes<kPanels>;
  /// One of the three.
  struct Third {
    const typename L::Ints* codes;
    void dots(const int8_t* x, typename L::Ints sum[2]) const { half_dots<3, L>(codes, x, sum); }
  };

  void load(const uint8_t* const panel[kPanels]) {
    __m256i own[kPanels][3 * kCodeVectors];
    for (int p = 0; p < kPanels; ++p) unpack_five_levels(panel[p], own[p]);
    for (int d = 0; d < 3 * kCodeVectors; ++d) {
      const __m256i vectors[2] = {own[0][d], own[kPanels - 1][d]};
      codes_[d] = L::join(vectors);
    }
  }
  Third third(int64_t i) const { return {codes_ + i * kCodeVectors}; }

 private:
  typename L::Ints codes_[3 * kCodeVectors];
};

}  // namespace oq::cpu::OQ_ISA
