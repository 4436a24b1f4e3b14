#pragma once

#include "kernels/cuda/block.h"
#include "kernels/cuda/fields.h"
#include "kernels/cuda/kernels.h"

/// A warp's way through the codes of one tile of 16 rows: units w, w + 8, ... of columns, a few of
/// them, kDepth, under way at any time.
namespace oq::cuda {

template <int kBits, bool kFive, int kDepth>
class WeightTile {
 public:
  static constexpr int kThirds = kFive ? 3 : 1;
  static constexpr int kUnitCols = kThirds * kStripCols;

  /// Starts the first loads. `w` is wherever the arguments are: what every unit needs is copied,
  /// or it would be read again for each.
  OQ_DEVICE WeightTile(const PackedMatrix& w, int tile)
      : codes_(w.codes + int64_t(tile) * w.units * kUnitWords),
        units_(w.units),
        groups_per_block_(32.0f / float(w.group)),
        last_group_(w.groups - 1),
        zero_mode_(w.zero_mode),
        zero_(uint32_t(uint16_t(w.zero)) * 0x10001u),
        group_per_strip_(w.group % kStripCols == 0 || w.groups == 1) {
    const int64_t first = int64_t(tile) * w.groups * (kTileRows / 2) + lane_id() / 4;
    scales_ = reinterpret_cast<const uint32_t*>(w.scales) + first;
    zeros_ = static_cast<const std::byte*>(w.zeros) + first * (zero_mode_ == Zeros::i16 ? 4 : 2);
    OQ_UNROLL
    for (int s = 0; s < kDepth; ++s) {
      const int unit = warp_id() + s * kWarps;
      if (unit < units_) ring_[s].load(codes_ + int64_t(unit) * kUnitWords);
    }
  }

  OQ_DEVICE bool group_per_strip() const { return group_per_strip_; }

  /// use(words of the unit, its number) for each of the warp's units.
  template <class Use>
  OQ_DEVICE void walk(Use use) {
    for (int first = warp_id(); first < units_; first += kDepth * kWarps) {
      OQ_UNROLL
      for (int s = 0; s < kDepth; ++s) {
        const int unit = first + s * kWarps, next = unit + kDepth * kWarps;
        if (unit >= units_) continue;
        const UnitWords<kBits> words = ring_[s];
        if (next < units_) ring_[s].load(codes_ + int64_t(next) * kUnitWords);
        use(words.w, unit);
      }
    }
  }

  /// The group that column `column`, a multiple of 32, belongs to: scales (f16) and zero points
  /// (16 bits) of rows g and g + 8 in one word each.
  OQ_DEVICE void load_group(int column, uint32_t& scales, uint32_t& zeros) const {
    // column / group: with the half, exact below 2^26 columns, and no integer division.
    const int of_column = int((float(column / 32) + 0.5f) * groups_per_block_);
    const int at = (of_column < last_group_ ? of_column : last_group_) * (kTileRows / 2);
    scales = scales_[at];
    zeros = zero_;
    if (zero_mode_ == Zeros::u8) {
      const uint32_t both = reinterpret_cast<const uint16_t*>(zeros_)[at];
      zeros = (both & 0xFFu) | (both >> 8) << 16;
    } else if (zero_mode_ == Zeros::i16) {
      zeros = reinterpret_cast<const uint32_t*>(zeros_)[at];
    }
  }

 private:
  static constexpr int kUnitWords = 2 * kBits * 32;

  const uint32_t* codes_;
  int units_;
  float groups_per_block_;  ///< of 32 columns
  int last_group_;
  Zeros zero_mode_;
  uint32_t zero_;
  bool group_per_strip_;
  const uint32_t* scales_;  ///< of the lane's rows
  const std::byte* zeros_;  ///< likewise
  UnitWords<kBits> ring_[kDepth];
};

}  // namespace oq::cuda
