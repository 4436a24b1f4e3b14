#pragma once

/// Packed weights times many tokens, 64 at once; and packed weights as f16.
///
/// Regime: prefill, and batches of more than 8 sequences. Bound, by count for w4 on an H100
///   (docs/cuda.md): memory up to some 48 tokens, 24 as hi + lo; tensor cores beyond.
/// Layout: layout.h for weights, which go from memory to registers, once for 64 tokens. Activations
///   are fragments already (batch.h) and go to shared memory by cp.async, kStages - 1 steps ahead,
///   where all warps read the same ones.
/// Work split: a block of 8 warps has 128 rows, 64 tokens and a stretch of the columns; a warp 16
///   rows of them with all 64 tokens, so that what is unpacked once is multiplied 8 or 16 times.
///   Few rows of weights are split by columns so that blocks fill 132 SMs; `finish` adds their
///   sums. The number of mma follows the tokens by eights, the registers do not: one kernel for 9
///   to 64.
/// Sums: fp32 in the tensor core over at most a strip of 128 columns, then as in packed_linear.h. A
///   token's bits depend on the splits, and so on how many tokens there are.
/// Measured: not measured.

#include <algorithm>

#include "kernels/cuda/batch.h"
#include "kernels/cuda/block.h"
#include "kernels/cuda/tile.h"

namespace oq::cuda {

constexpr int kMostTiles = kBlockTokens / kTokenTile;

/// A step of a block's walk: so many of a unit's four pairs of mma, with all of its strips.
template <bool kFive>
constexpr int kStepPairs = kFive ? 1 : 4;
constexpr int kStages = 3;  ///< steps in shared memory

/// Operand bytes of a step.
template <bool kFive>
constexpr int step_bytes(int tiles, bool precise) {
  return kThirdsOf<kFive> * kStepPairs<kFive> * tiles * operand_bytes(precise);
}

template <int kBits, bool kFive>
class BatchMultiplier {
 public:
  OQ_DEVICE BatchMultiplier(const BatchArgs& a, const PackedMatrix& w)
      : a_(a), w_(w), tile_(block_x() / a.plan.splits * kWarps + warp_id()), grids_(w, own_tile()) {
    const int split = block_x() % a.plan.splits;
    expert_ = block_y() / a.plan.chunks();
    first_tile_ = block_y() % a.plan.chunks() * a.plan.block_tiles;
    const int tokens = a.experts != nullptr ? a.in.count[expert_] : a.plan.tokens;
    const int left = (tokens + kTokenTile - 1) / kTokenTile - first_tile_;
    tiles_ = left < a.plan.block_tiles ? left : a.plan.block_tiles;
    from_ = int(int64_t(w.units) * split / a.plan.splits);
    to_ = int(int64_t(w.units) * (split + 1) / a.plan.splits);
  }

  OQ_DEVICE void run() {
    if (tiles_ <= 0) return;  // nobody chose the expert; all threads of the block
    UnitWords<kBits> next;
    load(from_, next);
    OQ_UNROLL
    for (int s = 0; s < kStages - 1; ++s) copy_step(s);
    for (int unit = from_, step = 0; unit < to_; ++unit) {
      const UnitWords<kBits> words = next;
      if (unit + 1 < to_) load(unit + 1, next);
      OQ_UNROLL
      for (int part = 0; part < kParts; ++part, ++step) {
        async_wait<kStages - 2>();
        sync_block();
        copy_step(step + kStages - 1);
        multiply(words, unit, part, stage(step));
      }
    }
    async_wait<0>();
    leave();
  }

 private:
  static constexpr int kThirds = kThirdsOf<kFive>;
  static constexpr int kUnitCols = kThirds * kStripCols;
  static constexpr int kUnitWords = 2 * kBits * 32;
  static constexpr int kParts = 4 / kStepPairs<kFive>;  ///< steps of a unit

  /// The last tile's weights where a warp has none: it works for nothing, but keeps step.
  OQ_DEVICE int own_tile() const { return tile_ < w_.tiles ? tile_ : w_.tiles - 1; }
  OQ_DEVICE bool precise() const { return a_.plan.how.precise; }
  OQ_DEVICE int operand_size() const { return operand_bytes(precise()); }

  OQ_DEVICE void load(int unit, UnitWords<kBits>& words) const {
    words.load(w_.codes + (int64_t(own_tile()) * w_.units + unit) * kUnitWords);
  }

  OQ_DEVICE std::byte* stage(int step) const {
    return shared_memory() + step % kStages * step_bytes<kFive>(tiles_, precise());
  }

  /// Starts the copies of a step, or of nothing behind the last: groups are counted.
  OQ_DEVICE void copy_step(int step) const {
    const int unit = from_ + step / kParts, pair = step % kParts * kStepPairs<kFive>;
    if (unit < to_) {
      const int bytes = tiles_ * operand_size();
      std::byte* to = stage(step);
      OQ_UNROLL
      for (int i = 0; i < kThirds * kStepPairs<kFive>; ++i) {
        const int block = (unit * kThirds + i / kStepPairs<kFive>)*4 + pair + i % kStepPairs<kFive>;
        const int64_t at =
            (int64_t(expert_) * a_.plan.column_blocks + block) * a_.plan.token_tiles() +
            first_tile_;
        const std::byte* from = a_.operand + at * operand_size();
        for (int b = 16 * thread_id(); b < bytes; b += 16 * kThreads) {
          async_copy16(to + i * bytes + b, from + b);
        }
      }
    }
    async_commit();
  }

  /// The operand of 8 tokens and 32 columns.
  OQ_DEVICE const std::byte* operand(const std::byte* stage, int third, int pair, int n) const {
    return stage + ((third * kStepPairs<kFive> + pair) * tiles_ + n) * operand_size();
  }

  OQ_DEVICE void multiply(const UnitWords<kBits>& words, int unit, int part,
                          const std::byte* stage) {
    const bool whole_strips = !kFive && group_per_strip(w_);
    OQ_UNROLL
    for (int pair = 0; pair < kStepPairs<kFive>; ++pair) {
      uint32_t a[kThirds][8];
      fragments_of<kBits, kFive>(words, part * kStepPairs<kFive> + pair, a);
      OQ_UNROLL
      for (int t = 0; t < kThirds; ++t) {
        multiply_pair(a[t], operand(stage, t, pair, 0));
        if (whole_strips && pair < 3) continue;
        const int column =
            unit * kUnitCols + t * kStripCols + kOperandCols * (part * kStepPairs<kFive> + pair);
        close(column, operand(stage, t, whole_strips ? 0 : pair, 0), whole_strips ? 4 : 1);
      }
    }
  }

  OQ_DEVICE void multiply_pair(const uint32_t a[8], const std::byte* operands) {
    OQ_UNROLL
    for (int n = 0; n < kMostTiles; ++n) {
      if (n >= tiles_) continue;
      const auto* lanes = reinterpret_cast<const Words4*>(operands + n * operand_size());
      const Words4 hi = lanes[lane_id()];
      mma_f16(c_[n], a, hi.w);
      mma_f16(c_[n], a + 4, hi.w + 2);
      if (!precise()) continue;
      const Words4 lo = lanes[32 + lane_id()];
      mma_f16(c_[n], a, lo.w);
      mma_f16(c_[n], a + 4, lo.w + 2);
    }
  }

  /// totals += scale (c - zero x sums of x over so many pairs), and c starts again.
  OQ_DEVICE void close(int column, const std::byte* operands, int pairs) {
    uint32_t scales, zeros;
    grids_.load(column, scales, zeros);
    OQ_UNROLL
    for (int n = 0; n < kMostTiles; ++n) {
      if (n >= tiles_) continue;
      float x[2] = {};
      for (int p = 0; p < pairs; ++p) {
        const std::byte* end = operands + (p * tiles_ + n + 1) * operand_size();
        const auto* sums = reinterpret_cast<const float*>(end) - kTokenTile + 2 * (lane_id() % 4);
        x[0] += sums[0];
        x[1] += sums[1];
      }
      OQ_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float scale = scale_of_row(scales, i / 2), zero = zero_of_row(zeros, i / 2);
        totals_[n][i] += scale * (c_[n][i] * 0x1p24f - zero * x[i % 2]);
        c_[n][i] = 0;
      }
    }
  }

  OQ_DEVICE void leave() const {
    if (tile_ >= w_.tiles) return;
    const int split = block_x() % a_.plan.splits, q = lane_id() % 4, g = lane_id() / 4;
    float* parts = a_.parts + (int64_t(expert_) * a_.plan.splits + split) * a_.plan.tokens *
                                  a_.plan.padded_rows;
    OQ_UNROLL
    for (int n = 0; n < kMostTiles; ++n) {
      if (n >= tiles_) continue;
      OQ_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int token = (first_tile_ + n) * kTokenTile + 2 * q + i % 2;
        parts[int64_t(token) * a_.plan.padded_rows + tile_ * kTileRows + g + i / 2 * 8] =
            totals_[n][i];
      }
    }
  }

  const BatchArgs& a_;
  const PackedMatrix& w_;
  int tile_;
  RowGrids grids_;
  int expert_, first_tile_, tiles_;  ///< tiles of 8 tokens
  int from_, to_;                    ///< units
  float c_[kMostTiles][4] = {}, totals_[kMostTiles][4] = {};
};

template <int kBits, bool kFive>
__global__ void __launch_bounds__(kThreads, 1) batch_kernel(BatchArgs a) {
  const int64_t expert = block_y() / a.plan.chunks();
  const PackedMatrix& w =
      a.experts == nullptr ? a.linear.matrix : a.experts[expert * a.expert_step].matrix;
  BatchMultiplier<kBits, kFive>(a, w).run();
}

template <int kBits, bool kFive>
void start_batch(Stream& stream, const BatchArgs& args) {
  BatchArgs a = args;
  BatchPlan& p = a.plan;
  const auto shared = [&] {
    return size_t(kStages) * size_t(step_bytes<kFive>(p.block_tiles, p.how.precise));
  };
  p.block_tiles = std::min(p.token_tiles(), kMostTiles);
  while (shared() > stream.block_shared()) --p.block_tiles;
  const int row_blocks = (p.padded_rows / kTileRows + kWarps - 1) / kWarps;
  launch(stream, "batch_linear", batch_kernel<kBits, kFive>,
         {.x = row_blocks * p.splits,
          .y = p.experts * p.chunks(),
          .threads = kThreads,
          .shared = shared()},
         a);
}

/// A block makes a tile's 16 rows, or a stretch of their columns, a warp a unit of them; weak
/// columns are put in at the end.
template <int kBits, bool kFive>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(BatchArgs a) {
  constexpr int kThirds = kThirdsOf<kFive>;
  const PackedMatrix& w = a.linear.matrix;
  const int pieces = grid_x() / (a.plan.dequantized / kTileRows), piece = block_x() % pieces;
  const int local = block_x() / pieces, tile = a.first_row / kTileRows + local;
  const int g = lane_id() / 4, q = lane_id() % 4, stride = a.plan.padded_cols;
  uint16_t* to = a.weights + int64_t(local) * kTileRows * stride;
  const RowGrids grids(w, tile);
  const int from = int(int64_t(w.units) * piece / pieces);
  const int end = int(int64_t(w.units) * (piece + 1) / pieces);
  for (int unit = from + warp_id(); unit < end; unit += kWarps) {
    UnitWords<kBits> words;
    words.load(w.codes + (int64_t(tile) * w.units + unit) * (2 * kBits * 32));
    OQ_UNROLL
    for (int pair = 0; pair < 4; ++pair) {
      uint32_t codes[kThirds][8];
      fragments_of<kBits, kFive>(words, pair, codes);
      OQ_UNROLL
      for (int t = 0; t < kThirds; ++t) {
        const int column = (unit * kThirds + t) * kStripCols + kOperandCols * pair;
        uint32_t scales, zeros;
        grids.load(column, scales, zeros);
        OQ_UNROLL
        for (int i = 0; i < 8; ++i) {
          const int k = column + i / 2 * 8 + 2 * q, r = i % 2;
          if (k >= stride) continue;
          const int power = field_power(kBits, 4 * pair + i / 2);
          const float scale = scale_of_row(scales, r), zero = zero_of_row(zeros, r);
          const float low = float((codes[t][i] & 0xFFFFu) >> power) - zero;
          const float high = float(codes[t][i] >> 16 >> power) - zero;
          *reinterpret_cast<uint32_t*>(to + int64_t(g + 8 * r) * stride + k) =
              float_to_half(scale * low) | uint32_t(float_to_half(scale * high)) << 16;
        }
      }
    }
  }
  sync_block();
  const uint16_t* weak = w.weak + int64_t(tile) * w.weak_columns * kTileRows;
  for (int i = thread_id(); i < w.weak_columns * kTileRows; i += kThreads) {
    const int k = int(w.weak_index[i / kTileRows]), unit = k / (kThirds * kStripCols);
    if (unit < from || unit >= end) continue;
    const uint16_t bits = weak[i];
    to[int64_t(i % kTileRows) * stride + k] =
        w.weak_bf16 ? float_to_half(bits_to_float(uint32_t(bits) << 16)) : bits;
  }
}

template <int kBits, bool kFive>
void start_dequantize(Stream& stream, const BatchArgs& a) {
  const int tiles = a.plan.dequantized / kTileRows, units = a.linear.matrix.units;
  const int pieces = std::clamp(2 * kProcessors / tiles, 1, (units + kWarps - 1) / kWarps);
  launch(stream, "dequantize", dequantize_kernel<kBits, kFive>,
         {.x = tiles * pieces, .threads = kThreads}, a);
}

}  // namespace oq::cuda
