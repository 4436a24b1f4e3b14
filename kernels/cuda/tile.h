#pragma once

#include "kernels/cuda/fields.h"

/// A warp's view of one tile of packed weights: the A fragments of its units, and the grids of a
/// lane's two rows, g and g + 8.
namespace oq::cuda {

template <bool kFive>
constexpr int kThirdsOf = kFive ? 3 : 1;  ///< strips of a unit

/// A fragments of columns [32 pair, 32 pair + 32) of each strip of a unit: a[third][0..3] is the
/// pair's first mma, a[third][4..7] its second.
template <int kBits, bool kFive>
OQ_DEVICE void fragments_of(const UnitWords<kBits>& words, int pair,
                            uint32_t a[kThirdsOf<kFive>][8]) {
  OQ_UNROLL
  for (int i = 0; i < 8; ++i) {  // mma i / 4; register i % 4: rows g and g + 8, then columns + 8
    const uint32_t v = field<kBits>(words.w + i % 2 * kBits, 4 * pair + i / 2);
    if constexpr (kFive) {
      uint32_t codes[3];
      split_levels(v, codes);
      OQ_UNROLL
      for (int t = 0; t < 3; ++t) a[t][i] = codes[t];
    } else {
      a[0][i] = v;
    }
  }
}

/// Scales and zero points of a lane's rows. What every unit needs of the matrix is copied: it would
/// be read again for each.
class RowGrids {
 public:
  OQ_DEVICE RowGrids(const PackedMatrix& w, int tile)
      : groups_per_block_(32.0f / float(w.group)),
        last_group_(w.groups - 1),
        zero_mode_(w.zero_mode),
        zero_(uint32_t(uint16_t(w.zero)) * 0x10001u) {
    const int64_t first = int64_t(tile) * w.groups * (kTileRows / 2) + lane_id() / 4;
    scales_ = reinterpret_cast<const uint32_t*>(w.scales) + first;
    zeros_ = static_cast<const std::byte*>(w.zeros) + first * (zero_mode_ == Zeros::i16 ? 4 : 2);
  }

  /// Of the group of a column: two f16 scales in one word, two zero points of 16 bits in another;
  /// row g in the low half.
  OQ_DEVICE void load(int column, uint32_t& scales, uint32_t& zeros) const {
    // column / group: with the half, exact below 2^26 columns, and no integer division.
    const int of_column = int((float(column / 32) + 0.5f) * groups_per_block_);
    const int at = (of_column < last_group_ ? of_column : last_group_) * (kTileRows / 2);
    scales = scales_[at];
    if (zero_mode_ == Zeros::u8) {
      const uint32_t both = reinterpret_cast<const uint16_t*>(zeros_)[at];
      zeros = (both & 0xFFu) | (both >> 8) << 16;
    } else if (zero_mode_ == Zeros::i16) {
      zeros = reinterpret_cast<const uint32_t*>(zeros_)[at];
    } else {
      zeros = zero_;
    }
  }

 private:
  const uint32_t* scales_;
  const std::byte* zeros_;
  float groups_per_block_;  ///< of 32 columns
  int last_group_;
  Zeros zero_mode_;
  uint32_t zero_;
};

/// True where a strip of 128 columns never has two groups.
OQ_DEVICE bool group_per_strip(const PackedMatrix& w) {
  return w.group % kStripCols == 0 || w.groups == 1;
}

OQ_DEVICE float scale_of_row(uint32_t scales, int r) {
  return half_to_float(uint16_t(scales >> (16 * r)));
}
OQ_DEVICE float zero_of_row(uint32_t zeros, int r) { return float(int16_t(zeros >> (16 * r))); }

}  // namespace oq::cuda
