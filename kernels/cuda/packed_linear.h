#pragma once

/// Packed weights times 1 to 8 tokens.
///
/// Regime: decode. Bound: memory; every code is read once, by 16-byte loads that the first-level
///   cache does not keep.
/// Layout: layout.h. A lane's words become the A fragments of mma m16n8k16 by a mask (a code in the
///   low bits of a half is a subnormal f16 number), so w4 costs 0.63 integer instructions a weight
///   and w2 0.56, against 2 to 3 for a conversion and an fp32 multiplication on each.
/// Activations: hi + lo, two f16 numbers that keep 22 bits. An mma has 8 columns, so up to 4
///   tokens have both halves in one of them; 5 to 8 tokens take two.
/// Sums: fp32 in the tensor core over at most a strip of 128 columns (products of a code below
///   2^8 and an f16 are exact), then scale x (sum - zero x sum of x) in fp32.
/// Work split: linear.h; warp w takes units w, w + 8, ... of columns.
/// In flight: kDepth units a warp, 0.75 to 2 KiB, before the block looks at its activations. With 1
///   to 4 tokens two blocks fit an SM, whose 16 warps have at least 20 KiB under way; 3 TB/s for
///   0.6 us are 14 KiB for each SM. With 5 to 8 tokens it is one block, half of that: weak.
/// Measured: not measured.
/// Lost, by count: fp32 multiplications with a conversion each (2.5 instructions a weight; at w2
///   the 53 weights that a cycle brings to an SM of an H100 would want all of its 128 lanes);
///   f16 numbers 1024 + code (a subtraction more, or sums a thousand times too large).

#include "kernels/cuda/linear.h"
#include "kernels/cuda/tile.h"

namespace oq::cuda {

constexpr int kWeakSlices = kThreads / kTileRows;

/// Words of B fragments that a strip takes: [4 pairs of mma][2 tokens][4 q][16 bytes].
OQ_DEVICE int strip_words(int tokens) { return 4 * 2 * tokens * 4 * 4; }

template <int kBits, bool kFive, bool kWide>
class PackedMultiplier {
 public:
  static constexpr int kSlices = kWarps + kWeakSlices;

  OQ_DEVICE int slices() const { return w_.weak_columns > 0 ? kSlices : kWarps; }

  OQ_DEVICE PackedMultiplier(const PackedMatrix& w, int tile)
      : w_(w),
        tile_(tile),
        codes_(w.codes + int64_t(tile) * w.units * kUnitWords),
        grids_(w, tile) {
    prefetch(warp_id(), w_.units);
  }

  OQ_DEVICE const uint32_t* weak_mask() const { return w_.weak_mask; }

  /// Fragments and sums of x of as many units as fit, at least one.
  static size_t slab_bytes(int cols, int tokens, int most) {
    const int units = (cols + kUnitCols - 1) / kUnitCols;
    return size_t(slab_units(units, tokens, most)) * unit_bytes(tokens);
  }

  /// `room` tokens at the most: what strides are counted in.
  OQ_DEVICE void run(const BlockInput& input, int room, Slab slab, float* parts) {
    room_ = room;
    const int step = slab_units(w_.units, room, slab.bytes);
    for (int from = 0; from < w_.units; from += step) {
      const int to = from + step < w_.units ? from + step : w_.units;
      const int first = from + ((warp_id() - from) % kWarps + kWarps) % kWarps;
      if (from > 0) {
        sync_block();
        prefetch(first, to);
      }
      fragments_ = reinterpret_cast<uint32_t*>(slab.data);
      sums_ = reinterpret_cast<float*>(slab.data) + step * kThirds * strip_words(room);
      stage(input, from * kThirds, to * kThirds);
      sync_block();
      if (group_per_strip(w_)) {
        walk<true>(from, first, to);
      } else {
        walk<false>(from, first, to);
      }
    }
    leave(input, parts);
    if (w_.weak_columns > 0) add_weak(input, parts + kWarps * kTileRows * room);
  }

 private:
  static constexpr int kThirds = kThirdsOf<kFive>;
  static constexpr int kUnitCols = kThirds * kStripCols;
  static constexpr int kUnitWords = 2 * kBits * 32;
  static constexpr int kDepth = kBits <= 2 ? 3 : kBits <= 4 && !kWide ? 2 : 1;
  static constexpr int kOwn = kWide ? 2 : 1;  ///< tokens whose sums a lane holds

  struct Slot {
    UnitWords<kBits> words;
    uint32_t scales, zeros;  ///< where they do not change within the strip
  };

  static constexpr size_t unit_bytes(int tokens) {
    return size_t(kThirds) * size_t(tokens) * (512 + 16);
  }
  static constexpr int slab_units(int units, int tokens, int most) {
    const int fit = int(size_t(most) / unit_bytes(tokens));
    return units < fit ? units : fit;
  }

  OQ_DEVICE void load(int unit, Slot& slot) const {
    slot.words.load(codes_ + int64_t(unit) * kUnitWords);
    if constexpr (!kFive) {  // w2* has no registers left to fetch these ahead
      if (group_per_strip(w_)) grids_.load(unit * kUnitCols, slot.scales, slot.zeros);
    }
  }

  OQ_DEVICE void prefetch(int unit, int end) {
    OQ_UNROLL
    for (int s = 0; s < kDepth; ++s) {
      if (unit + s * kWarps < end) load(unit + s * kWarps, ring_[s]);
    }
  }

  /// Activations of strips [from, to) as B fragments: a warp takes a strip, a lane 4 columns.
  OQ_DEVICE void stage(const BlockInput& input, int from, int to) {
    const int l = lane_id(), first = 4 * l;
    int power = 0;  // the lane's columns belong to field l / 2, which only the compiler can look up
    OQ_UNROLL
    for (int e = 0; e < kStripFields; ++e) power = l / 2 == e ? field_power(kBits, e) : power;
    const float lowered = bits_to_float(uint32_t(127 - power) << 23);
    for (int i = warp_id(); i < (to - from) * input.tokens(); i += kWarps) {
      const int strip = i / input.tokens(), m = i % input.tokens();
      const float up = input.stats(m).up;
      float x[4], sum = 0;
      OQ_UNROLL
      for (int c = 0; c < 4; ++c) {
        x[c] = input.live(m, (from + strip) * kStripCols + first + c) * up;
        sum += x[c];
      }
      OQ_UNROLL
      for (int mask = 1; mask < 8; mask *= 2) sum += shuffle_xor(sum, mask);
      if (l % 8 == 0) sums_[(strip * 4 + l / 8) * room_ + m] = sum;
      OQ_UNROLL
      for (int p = 0; p < 2; ++p) {
        store_pair(strip, m, first + 2 * p, x[2 * p] * lowered, x[2 * p + 1] * lowered);
      }
    }
  }

  /// Columns c and c + 1 of a strip, c even: one register of hi and one of lo.
  OQ_DEVICE void store_pair(int strip, int m, int c, float a, float b) {
    const uint16_t hi_a = float_to_half(a), hi_b = float_to_half(b);
    const uint16_t lo_a = float_to_half(a - half_to_float(hi_a));
    const uint16_t lo_b = float_to_half(b - half_to_float(hi_b));
    const int pair = c / 32, j = c / 16 % 2, upper = c / 8 % 2, q = c % 8 / 2;
    const int hi = kWide ? m : 2 * m, lo = kWide ? room_ + m : 2 * m + 1;
    uint32_t* to = fragments_ + strip * strip_words(room_) + 2 * j + upper;
    to[((pair * 2 * room_ + hi) * 4 + q) * 4] = hi_a | uint32_t(hi_b) << 16;
    to[((pair * 2 * room_ + lo) * 4 + q) * 4] = lo_a | uint32_t(lo_b) << 16;
  }

  template <bool kPerStrip>
  OQ_DEVICE void walk(int from, int first, int to) {
    for (int unit = first; unit < to; unit += kDepth * kWarps) {
      OQ_UNROLL
      for (int s = 0; s < kDepth; ++s) {
        const int u = unit + s * kWarps;
        if (u >= to) continue;
        const Slot slot = ring_[s];
        if (u + kDepth * kWarps < to) load(u + kDepth * kWarps, ring_[s]);
        multiply<kPerStrip>(slot, u, u - from);
      }
    }
  }

  OQ_DEVICE Words4 fragment(int strip, int pair, int n, bool there) const {
    if (!there) return Words4{{0, 0, 0, 0}};
    const uint32_t* from =
        fragments_ + strip * strip_words(room_) + ((pair * 2 * room_ + n) * 4 + lane_id() % 4) * 4;
    return *reinterpret_cast<const Words4*>(from);
  }

  /// One unit: `local` is its number in the slab. kPerStrip: a strip lies in one group.
  template <bool kPerStrip>
  OQ_DEVICE void multiply(const Slot& slot, int unit, int local) {
    float c[kThirds][4] = {}, x_sum[kThirds][kOwn] = {};
    OQ_UNROLL
    for (int pair = 0; pair < 4; ++pair) {
      uint32_t a[kThirds][8];
      fragments_of<kBits, kFive>(slot.words, pair, a);
      OQ_UNROLL
      for (int t = 0; t < kThirds; ++t) {
        const int strip = local * kThirds + t;
        multiply_pair(strip, pair, a[t], c[t]);
        OQ_UNROLL
        for (int o = 0; o < kOwn; ++o) x_sum[t][o] += own_sum(strip, pair, o);
        if (kPerStrip && pair < 3) continue;
        uint32_t scales = slot.scales, zeros = slot.zeros;
        if (kFive || !kPerStrip) {
          grids_.load(unit * kUnitCols + t * kStripCols + 32 * pair, scales, zeros);
        }
        close(scales, zeros, c[t], x_sum[t]);
      }
    }
  }

  OQ_DEVICE void multiply_pair(int strip, int pair, const uint32_t a[8], float c[4]) const {
    const int n = lane_id() / 4;
    const Words4 hi = fragment(strip, pair, n, n < (kWide ? room_ : 2 * room_));
    mma_f16(c, a, hi.w);
    mma_f16(c, a + 4, hi.w + 2);
    if constexpr (kWide) {
      const Words4 lo = fragment(strip, pair, room_ + n, n < room_);
      mma_f16(c, a, lo.w);
      mma_f16(c, a + 4, lo.w + 2);
    }
  }

  /// The token whose sum is the lane's o-th.
  OQ_DEVICE static int own_token(int o) { return kWide ? 2 * (lane_id() % 4) + o : lane_id() % 4; }
  OQ_DEVICE float own_sum(int strip, int pair, int o) const {
    return own_token(o) < room_ ? sums_[(strip * 4 + pair) * room_ + own_token(o)] : 0.0f;
  }

  /// totals += scale (c - zero x_sum), and both start again.
  OQ_DEVICE void close(uint32_t scales, uint32_t zeros, float c[4], float x_sum[kOwn]) {
    OQ_UNROLL
    for (int r = 0; r < 2; ++r) {
      const float scale = scale_of_row(scales, r), zero = zero_of_row(zeros, r);
      OQ_UNROLL
      for (int o = 0; o < kOwn; ++o) {
        const float sum = kWide ? c[2 * r + o] : c[2 * r] + c[2 * r + 1];
        totals_[r][o] += scale * (sum * 0x1p24f - zero * x_sum[o]);
      }
    }
    OQ_UNROLL
    for (int i = 0; i < 4; ++i) c[i] = 0;
    OQ_UNROLL
    for (int o = 0; o < kOwn; ++o) x_sum[o] = 0;
  }

  /// The warp's sums, as a slice of parts.
  OQ_DEVICE void leave(const BlockInput& input, float* parts) const {
    OQ_UNROLL
    for (int o = 0; o < kOwn; ++o) {
      const int m = own_token(o);
      if (m >= input.tokens()) continue;
      OQ_UNROLL
      for (int r = 0; r < 2; ++r) {
        const int row = lane_id() / 4 + 8 * r;
        parts[(warp_id() * kTileRows + row) * room_ + m] = totals_[r][o] * input.stats(m).down;
      }
    }
  }

  /// Weak columns: thread s x 16 + r takes row r and columns s, s + 16, ...
  OQ_DEVICE void add_weak(const BlockInput& input, float* parts) const {
    const int r = thread_id() % kTileRows, s = thread_id() / kTileRows;
    float sums[kMaxTokens] = {};
    for (int i = s; i < w_.weak_columns; i += kWeakSlices) {
      const float weight = weak_weight(w_, (int64_t(tile_) * w_.weak_columns + i) * kTileRows + r);
      const int k = int(w_.weak_index[i]);
      OQ_UNROLL
      for (int m = 0; m < kMaxTokens; ++m) {
        if (m < input.tokens()) sums[m] += weight * input.normed(m, k);
      }
    }
    OQ_UNROLL
    for (int m = 0; m < kMaxTokens; ++m) {
      if (m < input.tokens()) parts[(s * kTileRows + r) * room_ + m] = sums[m];
    }
  }

  const PackedMatrix& w_;
  int tile_, room_ = 0;
  const uint32_t* codes_;  ///< of the tile
  RowGrids grids_;
  uint32_t* fragments_ = nullptr;
  float* sums_ = nullptr;  ///< of x: [strip][4][room]
  Slot ring_[kDepth];
  float totals_[2][kOwn] = {};
};

/// Blocks on an SM: with two, those of 5 to 8 tokens would spill a few registers.
template <bool kWide>
constexpr int kBlocksPerSm = kWide ? 1 : 2;

template <int kBits, bool kFive, bool kWide>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<kWide>) packed_kernel(PackedArgs args) {
  run_linears<PackedMultiplier<kBits, kFive, kWide>>(args);
}

template <int kBits, bool kFive, bool kWide>
void start_packed(Stream& stream, const PackedArgs& args) {
  launch_linears<PackedMultiplier<kBits, kFive, kWide>>(stream, "packed_linear",
                                                        packed_kernel<kBits, kFive, kWide>, args);
}

}  // namespace oq::cuda
