#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/layout.h"

/// From words as they lie in memory (layout.h) to registers of an mma.
namespace oq::cuda {

/// Field e of both halves of a row's words, as integers that are also the f16 numbers
/// field x 2^(field_power - 24). One instruction for most, one shift a word for the others; those
/// of spare bits are put together from their pieces. `e` is known when this is compiled.
template <int kBits>
OQ_DEVICE uint32_t field(const uint32_t* words, int e) {
  constexpr uint32_t kMask = (1u << kBits) - 1, kBoth = kMask | kMask << 16;
  if (is_whole(kBits, e)) {
    const uint32_t word = words[e % kBits];
    return (is_shifted(kBits, e) ? word >> field_shift(kBits) : word) &
           kBoth << field_power(kBits, e);
  }
  constexpr int kSpare = spare_bits(kBits) == 0 ? 1 : spare_bits(kBits);
  const int from = (e - whole_fields(kBits)) * kBits;
  uint32_t value = 0;
  OQ_UNROLL
  for (int w = 0; w < kBits; ++w) {  // spare bits of word w are bits [w kSpare, (w + 1) kSpare)
    const int begin = from > w * kSpare ? from : w * kSpare;
    const int end = from + kBits < (w + 1) * kSpare ? from + kBits : (w + 1) * kSpare;
    if (begin >= end) continue;
    const uint32_t mask = (1u << (end - begin)) - 1;
    const uint32_t bits = words[w] >> (16 - kSpare + begin - w * kSpare) & (mask | mask << 16);
    value |= bits << (begin - from);
  }
  return value;
}

/// The three codes of w2*'s fields c0 + 5 c1 + 25 c2, both halves at once: products stay below
/// 2^16, so neither half reaches the other.
OQ_DEVICE void split_levels(uint32_t v, uint32_t codes[3]) {
  codes[2] = v * 41 >> 10 & 0x00070007u;  // v div 25, v < 125
  const uint32_t rest = v - 25 * codes[2];
  codes[1] = rest * 13 >> 6 & 0x00070007u;  // div 5, below 25
  codes[0] = rest - 5 * codes[1];
}

/// Weak weight `at` of a matrix, as PackedMatrix counts them.
OQ_DEVICE float weak_weight(const PackedMatrix& w, int64_t at) {
  const uint16_t bits = w.weak[at];
  return w.weak_bf16 ? bits_to_float(uint32_t(bits) << 16) : half_to_float(bits);
}

/// The 2 F words of a lane's rows g and g + 8 in one unit.
template <int kBits>
struct UnitWords {
  uint32_t w[2 * kBits];

  OQ_DEVICE void load(const uint32_t* unit) {
    OQ_UNROLL
    for (int v = 0; v < kBits / 2; ++v) {
      const Words4 four = load_stream(reinterpret_cast<const Words4*>(unit) + v * 32 + lane_id());
      OQ_UNROLL
      for (int i = 0; i < 4; ++i) w[4 * v + i] = four.w[i];
    }
    if (kBits % 2 == 0) return;
    const Words2 two =
        load_stream(reinterpret_cast<const Words2*>(unit + kBits / 2 * 128) + lane_id());
    w[2 * kBits - 2] = two.w[0];
    w[2 * kBits - 1] = two.w[1];
  }
};

}  // namespace oq::cuda
