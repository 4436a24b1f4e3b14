#pragma once

/// The engine on bytes: mma m16n8k32 of u8 codes.
///
/// An mma has 8 columns, one for each token, so kTiles of them take 8 kTiles tokens; one more, with
/// ones for B, gives the sums of weights. To unpack costs 0.25 to 1 instruction a weight: where a
/// width divides 8, four codes lie in their bytes after a shift and a mask. Groups that end within
/// a strip mask B, 32 columns at a time.

#include "kernels/cuda/integer_linear.h"

namespace oq::cuda {

template <int kBits, bool kFive, int kTiles>
class BytesMultiplier {
 public:
  static constexpr int kTokens = 8 * kTiles;

  OQ_DEVICE BytesMultiplier(const PackedMatrix& w, int tile, const TokenRows& x, int)
      : weights_(w, tile), x_(x) {}

  OQ_DEVICE void run(float* parts) {
    OQ_UNROLL
    for (int o = 0; o < kOwn; ++o) {
      if (own_token(o) < x_.tokens()) a_zero_[o] = x_.grid(own_token(o)).zero;
    }
    if (weights_.group_per_strip()) {
      weights_.walk([&](const uint32_t* words, int unit) { multiply<true>(words, unit, 0); });
    } else {
      weights_.walk([&](const uint32_t* words, int unit) {
        for (int part = 0; part < 4; ++part) multiply<false>(words, unit, part);
      });
    }
    OQ_UNROLL
    for (int o = 0; o < kOwn; ++o) {
      if (own_token(o) >= x_.tokens()) continue;
      OQ_UNROLL
      for (int r = 0; r < 2; ++r) {
        parts[(warp_id() * kTileRows + lane_id() / 4 + 8 * r) * kTokens + own_token(o)] =
            totals_[r][o] * x_.grid(own_token(o)).scale;
      }
    }
  }

 private:
  using Tile = WeightTile<kBits, kFive, kBits <= 2 ? 3 : kBits <= 4 ? 2 : 1>;
  static constexpr int kThirds = Tile::kThirds;
  static constexpr int kOwn = 2 * kTiles;  ///< tokens whose sums a lane has

  OQ_DEVICE static int own_token(int o) { return o / 2 * 8 + 2 * (lane_id() % 4) + o % 2; }

  /// Codes of registers 2 i and 2 i + 1 of rows g and g + 8, as an A fragment of each third.
  OQ_DEVICE static void operands(const uint32_t* words, int i, uint32_t a[kThirds][4]) {
    OQ_UNROLL
    for (int k = 0; k < 4; ++k) {
      const uint32_t* row = words + k % 2 * kBits;
      const int e = 2 * i + k / 2;
      if constexpr (kFive) {
        uint32_t low[3], high[3];
        split_levels(code_at_bit<kBits>(row, e, 0), low);
        split_levels(code_at_bit<kBits>(row, e + 8, 0), high);
        OQ_UNROLL
        for (int t = 0; t < 3; ++t) a[t][k] = low[t] | high[t] << 8;
      } else {
        a[0][k] = four_codes<kBits>(row, e);
      }
    }
  }

  /// One unit, or the 32 columns `part` of each of its strips: those are bytes 0 and 2, or 1 and
  /// 3, of half of the registers.
  template <bool kWhole>
  OQ_DEVICE void multiply(const uint32_t* words, int unit, int part) {
    const uint32_t mask = kWhole ? ~0u : part < 2 ? 0x00FF00FFu : 0xFF00FF00u;
    const uint32_t one[2] = {0x01010101u & mask, 0x01010101u & mask};
    int32_t products[kThirds][kTiles][4] = {}, sums[kThirds][4] = {};
    OQ_UNROLL
    for (int i = 0; i < 4; ++i) {
      if (!kWhole && i / 2 != part % 2) continue;
      uint32_t a[kThirds][4];
      operands(words, i, a);
      OQ_UNROLL
      for (int t = 0; t < kThirds; ++t) {
        OQ_UNROLL
        for (int n = 0; n < kTiles; ++n) {
          const Words2 x = fragment(unit * kThirds + t, i, n);
          const uint32_t b[2] = {x.w[0] & mask, x.w[1] & mask};
          mma_u8(products[t][n], a[t], b);
        }
        mma_u8(sums[t], a[t], one);
      }
    }
    OQ_UNROLL
    for (int t = 0; t < kThirds; ++t) {
      const int strip = unit * kThirds + t;
      uint32_t scales, zeros;
      weights_.grids().load(strip * kStripCols + (kWhole ? 0 : 32 * part), scales, zeros);
      OQ_UNROLL
      for (int o = 0; o < kOwn; ++o) {
        const int token = own_token(o);
        const uint32_t of_x = token < x_.tokens() ? x_.sums(strip, token, part, kWhole) : 0;
        OQ_UNROLL
        for (int r = 0; r < 2; ++r) {
          add_group(totals_[r][o], scale_of_row(scales, r), int16_t(zeros >> (16 * r)),
                    products[t][o / 2][2 * r + o % 2], sums[t][2 * r], of_x, a_zero_[o]);
        }
      }
    }
  }

  OQ_DEVICE Words2 fragment(int strip, int i, int n) const {
    const int token = 8 * n + lane_id() / 4;
    if (token >= x_.tokens()) return Words2{{0, 0}};
    const uint32_t* from = x_.codes(strip) + token * 32 + lane_id() % 4 * 8;
    return reinterpret_cast<const Words2*>(from)[i];
  }

  Tile weights_;
  const TokenRows& x_;
  float a_zero_[kOwn] = {};
  float totals_[2][kOwn] = {};  ///< of rows g and g + 8
};

}  // namespace oq::cuda
