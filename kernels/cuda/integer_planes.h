#pragma once

/// The engine on bit planes (ABQ-LLM, Zeng et al. 2024): sum a w = sum over planes i of x and j of
/// weights of 2^(i + j) popc(a_i and w_j).
///
/// mma m16n8k128 of bits: a strip's plane of 16 rows is one A fragment, and a lane's 32 codes are
/// its 32 bits, so planes come out of the packed words by shifts and masks (F x F / 16 instructions
/// a weight: 0.25 at w2, 1 at w4, 4 at w8). Its 8 columns are planes of x: of one token at 5 to 8
/// bits, of two at 3 and 4, of four at 2. Planes of weights are met from the top down and sums
/// doubled in between, so that there is one accumulator for all. Groups that end within a strip
/// mask B, 32 columns at a time.

#include "kernels/cuda/integer_linear.h"

namespace oq::cuda {

template <int kBits, bool kFive>
class PlanesMultiplier {
 public:
  static constexpr int kTokens = kMaxTokens;

  OQ_DEVICE PlanesMultiplier(const PackedMatrix& w, int tile, const TokenRows& x, int bits)
      : weights_(w, tile),
        x_(x),
        planes_(activation_planes(bits)),
        sharers_(planes_ / 2),
        tiles_((x.tokens() * planes_ + 7) / 8) {}

  OQ_DEVICE void run(float* parts) {
    if (weights_.group_per_strip()) {
      weights_.walk([&](const uint32_t* words, int unit) { multiply<true>(words, unit); });
    } else {
      weights_.walk([&](const uint32_t* words, int unit) { multiply<false>(words, unit); });
    }
    OQ_UNROLL
    for (int k = 0; k < 2; ++k) {
      const int token = token_of(k * sharers_ + lane_id() % 4 % sharers_);
      if (token >= x_.tokens()) continue;
      OQ_UNROLL
      for (int r = 0; r < 2; ++r) {
        parts[(warp_id() * kTileRows + lane_id() / 4 + 8 * r) * kMaxTokens + token] =
            totals_[r][k] * x_.grid(token).scale;
      }
    }
  }

 private:
  using Tile = WeightTile<kBits, kFive, kBits <= 2 ? 2 : 1>;
  static constexpr int kThirds = Tile::kThirds;
  static constexpr int kPlanes = kFive ? 3 : kBits;  ///< of weights

  /// The token whose planes the lane's columns of mma o are.
  OQ_DEVICE int token_of(int o) const { return (8 * o + 2 * (lane_id() % 4)) / planes_; }

  /// Planes of rows g and g + 8.
  OQ_DEVICE static void operands(const uint32_t* words, uint32_t a[kThirds][kPlanes][2]) {
    OQ_UNROLL
    for (int r = 0; r < 2; ++r) {
      uint32_t planes[kBits];
      OQ_UNROLL
      for (int j = 0; j < kBits; ++j) planes[j] = bit_plane<kBits>(words + r * kBits, j);
      if constexpr (kFive) {
        uint32_t codes[3][3];
        split_planes(planes, codes);
        OQ_UNROLL
        for (int i = 0; i < 9; ++i) a[i / 3][i % 3][r] = codes[i / 3][i % 3];
      } else {
        OQ_UNROLL
        for (int j = 0; j < kBits; ++j) a[0][j][r] = planes[j];
      }
    }
  }

  template <bool kWhole>
  OQ_DEVICE void multiply(const uint32_t* words, int unit) {
    uint32_t a[kThirds][kPlanes][2];
    operands(words, a);
    for (int part = 0; part < (kWhole ? 1 : 4); ++part) {
      const uint32_t mask = kWhole ? ~0u : 0x000F000Fu << (4 * part);
      OQ_UNROLL
      for (int t = 0; t < kThirds; ++t) add_part<kWhole>(a[t], unit * kThirds + t, part, mask);
    }
  }

  OQ_DEVICE static void products(const uint32_t a[kPlanes][2], uint32_t b, int32_t c[4]) {
    OQ_UNROLL
    for (int j = kPlanes - 1; j >= 0; --j) {
      OQ_UNROLL
      for (int i = 0; i < 4; ++i) c[i] *= 2;
      mma_and_popc(c, a[j], b);
    }
  }

  template <bool kWhole>
  OQ_DEVICE void add_part(const uint32_t a[kPlanes][2], int strip, int part, uint32_t mask) {
    uint32_t scales, zeros;
    weights_.grids().load(strip * kStripCols + 32 * part, scales, zeros);
    int32_t weights[4] = {};
    products(a, mask, weights);
    const int q = lane_id() % 4;
    for (int o = 0; o < tiles_; ++o) {  // unrolled, it would not fit the registers
      int32_t c[4] = {};
      products(a, fragment(strip, o) & mask, c);
      int32_t sums[2];
      OQ_UNROLL
      for (int r = 0; r < 2; ++r) {
        sums[r] = (c[2 * r] + 2 * c[2 * r + 1]) << (2 * q % planes_);
        if (planes_ > 2) sums[r] += shuffle_xor(sums[r], 1);
        if (planes_ > 4) sums[r] += shuffle_xor(sums[r], 2);
      }
      const int token = token_of(o);
      const bool own = o % sharers_ == q % sharers_ && token < x_.tokens();
      const uint32_t of_x = own ? x_.sums(strip, token, part, kWhole) : 0;
      const float a_zero = own ? x_.grid(token).zero : 0.0f;
      OQ_UNROLL
      for (int r = 0; r < 2; ++r) {
        const bool second = o >= sharers_;
        float total = second ? totals_[r][1] : totals_[r][0];
        add_group(total, scale_of_row(scales, r), int16_t(zeros >> (16 * r)), sums[r],
                  weights[2 * r], of_x, a_zero);
        if (own && !second) totals_[r][0] = total;
        if (own && second) totals_[r][1] = total;
      }
    }
  }

  /// Rows of planes lie as tokens do, so that mma o has 8 of them, whatever a token has.
  OQ_DEVICE uint32_t fragment(int strip, int o) const {
    const int row = 8 * o + lane_id() / 4;
    if (row >= x_.tokens() * planes_) return 0;
    return x_.codes(strip)[row * 4 + lane_id() % 4];
  }

  Tile weights_;
  const TokenRows& x_;
  int planes_;   ///< of x
  int sharers_;  ///< lanes that get the same sums: each keeps those of every so many mma
  int tiles_;    ///< mma that take all tokens
  float totals_[2][2] = {};  ///< of rows g and g + 8
};

}  // namespace oq::cuda
