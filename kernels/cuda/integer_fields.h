#pragma once

#include "kernels/cuda/fields.h"

/// From words as they lie in memory (layout.h) to the A fragments of integer tensor cores. An mma
/// sums over its k in any order, so a lane multiplies the columns that it happens to hold.
namespace oq::cuda {

/// Code `e` of both halves, its lowest bit at bit `to` of each; `to` leaves it room.
template <int kBits>
OQ_DEVICE uint32_t code_at_bit(const uint32_t* words, int e, int to) {
  constexpr uint32_t kMask = (1u << kBits) - 1, kBoth = kMask | kMask << 16;
  if (!is_whole(kBits, e)) return field<kBits>(words, e) << to;
  const int by = field_bit(kBits, e) - to;
  const uint32_t word = words[e % kBits];
  return (by >= 0 ? word >> by : word << -by) & kBoth << to;
}

/// Four codes in the bytes of a register: e and e + 8 of the low half, then of the high one. Where
/// a width divides 8 the four lie 8 bits apart already.
template <int kBits>
OQ_DEVICE uint32_t four_codes(const uint32_t* words, int e) {
  if constexpr (8 % kBits == 0) {
    constexpr uint32_t kMask = (1u << kBits) - 1;
    return words[e % kBits] >> field_bit(kBits, e) & kMask * 0x01010101u;
  }
  return code_at_bit<kBits>(words, e, 0) | code_at_bit<kBits>(words, e + 8, 8);
}

/// Bits `from`, `from` + kBits, ... of each half that begin a whole field.
template <int kBits>
constexpr uint32_t field_starts() {
  uint32_t mask = 0;
  for (int bit = 0; bit + kBits <= 16; bit += kBits) mask |= 0x10001u << bit;
  return mask;
}

/// Bit j of all fields of a row's words: that of field e at bit e of each half. Field w + k kBits
/// begins at bit k kBits of word w, so a shift by w - j puts the bits of a whole word in place.
template <int kBits>
OQ_DEVICE uint32_t bit_plane(const uint32_t* words, int j) {
  uint32_t plane = 0;
  OQ_UNROLL
  for (int w = 0; w < kBits; ++w) {
    const uint32_t to = field_starts<kBits>() << w;
    plane |= (w >= j ? words[w] << (w - j) : words[w] >> (j - w)) & to;
  }
  constexpr int kWhole = whole_fields(kBits), kSpare = spare_bits(kBits);
  OQ_UNROLL
  for (int e = kWhole; e < kStripFields; ++e) {
    const int at = (e - kWhole) * kBits + j;  // of the stream of spare bits
    const int from = 16 - kSpare + at % (kSpare == 0 ? 1 : kSpare);
    const uint32_t word = words[at / (kSpare == 0 ? 1 : kSpare)];
    plane |= (from >= e ? word >> (from - e) : word << (e - from)) & 0x10001u << e;
  }
  return plane;
}

/// w2*'s fields c0 + 5 c1 + 25 c2 as 7 planes into the 3 planes of each code: long division of 32
/// numbers at once, a bit of the quotient at a time.
OQ_DEVICE void split_planes(uint32_t field[7], uint32_t codes[3][3]) {
  OQ_UNROLL
  for (int t = 2; t > 0; --t) {
    OQ_UNROLL
    for (int bit = 2; bit >= 0; --bit) {
      const int divisor = (t == 2 ? 25 : 5) << bit;
      uint32_t rest[7], borrow = 0;
      OQ_UNROLL
      for (int i = 0; i < 7; ++i) {
        const uint32_t taken = (divisor >> i & 1) != 0 ? ~0u : 0u;
        rest[i] = field[i] ^ taken ^ borrow;
        borrow = (~field[i] & (taken | borrow)) | (taken & borrow);
      }
      codes[t][bit] = ~borrow;
      OQ_UNROLL
      for (int i = 0; i < 7; ++i) field[i] = (field[i] & borrow) | (rest[i] & ~borrow);
    }
  }
  OQ_UNROLL
  for (int bit = 0; bit < 3; ++bit) codes[0][bit] = field[bit];
}

}  // namespace oq::cuda
