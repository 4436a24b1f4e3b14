#pragma once

#include "kernels/cpu/simd/block.h"

/// Products of codes with signed activations for one panel: rows 0..3 in one register, 4..7 in
/// another. Both factors are signed bytes, so codes of up to 7 bits go as they are, and those of 8
/// bits less 128.
namespace oq::cpu::OQ_ISA {

constexpr int kTilePanels = 1;
constexpr int kMostTokens = 4;  ///< of 32 registers, 16 hold codes and 8 the sums of 4 tokens

#if defined(__ARM_FEATURE_DOTPROD)

/// `sdot` sums four products of bytes into 32 bits, with four activations of a register's 16.
template <int kFour>
inline Ints add_products(Ints sum, Bytes codes, int8x16_t x) {
  return {vdotq_laneq_s32(sum.low, vreinterpretq_s8_u8(codes.low), x, kFour),
          vdotq_laneq_s32(sum.high, vreinterpretq_s8_u8(codes.high), x, kFour)};
}

template <int kWidth, int kPanels>
inline __attribute__((always_inline)) void half_dots(
    const typename Lanes<kPanels>::Codes codes[kCodeVectors], const int8_t* x,
    typename Lanes<kPanels>::Ints sum[2]) {
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    const int8x16_t half = vld1q_s8(x + h * kActCols);
    sum[h] = add_products<0>(Ints{}, codes[h * kHalf], half);
    sum[h] = add_products<1>(sum[h], codes[h * kHalf + 1], half);
    sum[h] = add_products<2>(sum[h], codes[h * kHalf + 2], half);
    sum[h] = add_products<3>(sum[h], codes[h * kHalf + 3], half);
  }
}

#else

/// How many products an int16 holds: each is at most (2^bits - 1) * 128 in magnitude or, of 8 bits
/// less 128, 128 * 128. 6 bits: 4 * 63 * 128 = 32256 < 32768. 7 bits: 2 * 127 * 128 = 32512.
constexpr int int16_room(int bits) {
  const int largest = bits == 8 ? 128 : (1 << bits) - 1;
  const int room = 32767 / (largest * 128);
  return room < kHalf ? room : kHalf;
}
static_assert(int16_room(6) == 4 && int16_room(7) == 2 && int16_room(8) == 1);

/// Products of 32 codes, two rows to a vector, as int16: those of row r in lanes 4 (r % 2) to + 3.
struct Products {
  int16x8_t rows[4];
};

inline Products products(Bytes codes, int8x16_t x) {
  const int8x16_t low = vreinterpretq_s8_u8(codes.low), high = vreinterpretq_s8_u8(codes.high);
  return {{vmull_s8(vget_low_s8(low), vget_low_s8(x)), vmull_high_s8(low, x),
           vmull_s8(vget_low_s8(high), vget_low_s8(x)), vmull_high_s8(high, x)}};
}

inline Products add_products(const Products& sum, Bytes codes, int8x16_t x) {
  const int8x16_t low = vreinterpretq_s8_u8(codes.low), high = vreinterpretq_s8_u8(codes.high);
  return {{vmlal_s8(sum.rows[0], vget_low_s8(low), vget_low_s8(x)),
           vmlal_high_s8(sum.rows[1], low, x),
           vmlal_s8(sum.rows[2], vget_low_s8(high), vget_low_s8(x)),
           vmlal_high_s8(sum.rows[3], high, x)}};
}

/// Four int8 activations in every lane.
inline int8x16_t broadcast4(const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

/// `smlal` multiplies bytes into 16 bits, which have room for int16_room products; pairs of these
/// are summed into 32 bits, and pairs of those are rows.
template <int kWidth, int kPanels>
inline __attribute__((always_inline)) void half_dots(
    const typename Lanes<kPanels>::Codes codes[kCodeVectors], const int8_t* x,
    typename Lanes<kPanels>::Ints sum[2]) {
  constexpr int kRoom = int16_room(kWidth);
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    int32x4_t pairs[4];
#pragma GCC unroll 4
    for (int first = h * kHalf; first < (h + 1) * kHalf; first += kRoom) {
      Products narrow = products(codes[first], broadcast4(x + 4 * first));
#pragma GCC unroll 4
      for (int d = first + 1; d < first + kRoom; ++d) {
        narrow = add_products(narrow, codes[d], broadcast4(x + 4 * d));
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        pairs[i] = first == h * kHalf ? vpaddlq_s16(narrow.rows[i])
                                      : vpadalq_s16(pairs[i], narrow.rows[i]);
      }
    }
    sum[h] = {vpaddq_s32(pairs[0], pairs[1]), vpaddq_s32(pairs[2], pairs[3])};
  }
}

#endif

/// Codes of 8 bits become signed by flipping their top bit.
template <>
class Block<8, 1> {
 public:
  static constexpr int kOffset = 128;

  explicit Block(const uint8_t* const panel[1]) {
    const uint8x16_t top = vdupq_n_u8(128);
#pragma GCC unroll 8
    for (int d = 0; d < kCodeVectors; ++d) {
      const Bytes v = load_bytes(panel[0] + 32 * d);
      codes_[d] = {v.low ^ top, v.high ^ top};
    }
  }
  void dots(const int8_t* x, Ints sum[2]) const { half_dots<8, 1>(codes_, x, sum); }

 private:
  Bytes codes_[kCodeVectors];
};

}  // namespace oq::cpu::OQ_ISA
