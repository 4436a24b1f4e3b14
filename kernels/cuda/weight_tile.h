#pragma once

#include "kernels/cuda/block.h"
#include "kernels/cuda/tile.h"

/// A warp's way through the codes of one tile of 16 rows: units w, w + 8, ... of columns, a few of
/// them, kDepth, under way at any time.
namespace oq::cuda {

template <int kBits, bool kFive, int kDepth>
class WeightTile {
 public:
  static constexpr int kThirds = kThirdsOf<kFive>;
  static constexpr int kUnitCols = kThirds * kStripCols;

  /// Starts the first loads. `w` is wherever the arguments are: what every unit needs is copied,
  /// or it would be read again for each.
  OQ_DEVICE WeightTile(const PackedMatrix& w, int tile)
      : codes_(w.codes + int64_t(tile) * w.units * kUnitWords),
        units_(w.units),
        group_per_strip_(oq::cuda::group_per_strip(w)),
        grids_(w, tile) {
    OQ_UNROLL
    for (int s = 0; s < kDepth; ++s) {
      const int unit = warp_id() + s * kWarps;
      if (unit < units_) ring_[s].load(codes_ + int64_t(unit) * kUnitWords);
    }
  }

  OQ_DEVICE bool group_per_strip() const { return group_per_strip_; }
  OQ_DEVICE const RowGrids& grids() const { return grids_; }

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

 private:
  static constexpr int kUnitWords = 2 * kBits * 32;

  const uint32_t* codes_;
  int units_;
  bool group_per_strip_;
  RowGrids grids_;
  UnitWords<kBits> ring_[kDepth] = {};  ///< zeros where there is no unit: none is used
};

}  // namespace oq::cuda
