#pragma once

#include <cstring>

#include "kernels/cpu/simd/simd.h"

/// From the bytes of a column block to codes, and the other things of a packed panel that the
/// int8 and the exact kernel read alike.
namespace oq::cpu::OQ_ISA {

/// Vectors of codes in one column block: vector d, lane r, byte c = row r, column 4 d + c.
constexpr int kCodeVectors = 8;

/// The 8 fields of `kBits` bits of each byte lane (SPEC.md, "Column blocks"): those that lie
/// whole in a byte take a shift and a mask, the rest are put together from the top bits.
/// Instructions per 8 vectors on AVX2: 2 bits 14, 3 bits 21, 4 bits 12, 5 bits 23, 6 bits 22, 7
/// bits 27.
template <int kBits>
inline __attribute__((always_inline)) void unpack_fields(const uint8_t* block,
                                                         Bytes out[kCodeVectors]) {
  constexpr int kWhole = 8 / kBits, kDirect = kWhole * kBits, kLeft = 8 - kDirect;
  Bytes v[kBits];
#pragma GCC unroll 8
  for (int j = 0; j < kBits; ++j) v[j] = load_bytes(block + 32 * j);
#pragma GCC unroll 8
  for (int d = 0; d < kDirect; ++d) out[d] = field(v[d % kBits], d / kBits * kBits, kBits);
#pragma GCC unroll 8
  for (int d = kDirect; d < 8; ++d) {  // spill bits [low, high), byte j holds kLeft of them
    const int low = (d - kDirect) * kBits, high = low + kBits;
    out[d] = Bytes{};
#pragma GCC unroll 8
    for (int j = 0; j < kBits; ++j) {
      const int from = low > j * kLeft ? low : j * kLeft;
      const int to = high < (j + 1) * kLeft ? high : (j + 1) * kLeft;
      if (from >= to) continue;
      out[d] = or_field(out[d], v[j], kDirect - j * kLeft + low, to - from, from - low);
    }
  }
}

/// The three codes of each field of a w2* block: out[0..7] are its columns 0..31, and so on.
inline void unpack_five_levels(const uint8_t* block, Bytes out[3 * kCodeVectors]) {
  Bytes fields[kCodeVectors];
  unpack_fields<7>(block, fields);
  for (int d = 0; d < kCodeVectors; ++d) {
    const Bytes by5 = divide<5>(fields[d]);
    const Bytes by25 = divide<25>(fields[d]);
    out[d] = minus_5_times(fields[d], by5);
    out[d + 8] = minus_5_times(by5, by25);
    out[d + 16] = at_most(by25, 4);
  }
}

/// The 8 zero points of a panel and group.
class ZeroReader {
 public:
  explicit ZeroReader(const PackedView& w)
      : mode_(w.layout().packing.zero_mode),
        bytes_(w.layout().zero_bytes),
        groups_(int64_t(w.layout().groups)),
        p_(w.zeros(0)),
        constant_(all(w.layout().packing.zero)),
        fields_(bytes_) {}

  Floats operator()(int64_t panel, int64_t group) const {
    if (mode_ == ZeroMode::constant) return constant_;
    const uint8_t* p = p_ + (panel * groups_ + group) * bytes_;
    if (mode_ == ZeroMode::i16) return load_floats(reinterpret_cast<const int16_t*>(p));
    uint64_t word;  // 8 zero points of up to 8 bits; the section has 8 readable bytes behind it
    std::memcpy(&word, p, 8);
    return fields_(word);
  }

 private:
  ZeroMode mode_;
  int bytes_;
  int64_t groups_;
  const uint8_t* p_;
  Floats constant_;
  EightFields fields_;  ///< 8 rows of `bytes_` bits are as many bytes
};

/// acc[m] += weak weights of one panel times their activations.
template <int kTokens>
inline void add_weak(const PackedView& w, int64_t panel, const float* weak_x, Floats acc[]) {
  const int64_t n = w.layout().packing.weak_columns;
  const uint16_t* weights = w.weak(uint64_t(panel));
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t* p = weights + i * kPanelRows;
    const Floats column = w.layout().packing.weak_bf16
                              ? load_floats(reinterpret_cast<const bf16*>(p))
                              : load_floats(reinterpret_cast<const f16*>(p));
    for (int m = 0; m < kTokens; ++m) acc[m] = fmadd(column, all(weak_x[m * n + i]), acc[m]);
  }
}

inline void store_panel(const PackedView& w, int64_t panel, Floats acc, float* y) {
  const int64_t first = panel * kPanelRows, left = int64_t(w.layout().rows) - first;
  if (left >= kPanelRows) return store(y + first, acc);
  store_first(y + first, left, acc);
}

}  // namespace oq::cpu::OQ_ISA
