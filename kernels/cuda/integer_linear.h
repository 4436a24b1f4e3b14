#pragma once

/// Packed linears on codes of x, for both engines (integer.h).
///
/// Regime: decode, 1 to 8 tokens a block. Prompts: 32 tokens a block on bytes; more are more
///   blocks, which find the weights in the second-level cache.
/// Layout: layout.h for weights. Codes of x lie as an engine's B fragments, and a warp alone needs
/// a
///   strip of them: they go from the second-level cache to registers, without shared memory. A
///   fused block has made them itself, and has them there.
/// Fused: every block quantizes all rows again, as a16's blocks repeat their norm: 4 bytes a column
///   and token from the second-level cache, where 16 rows of w4 are 8 and of w2 4 from memory. So a
///   launch is saved at one token, and lost by count at 8: EngineTuner measures both.
/// Sums: s32 over at most a strip of 128 columns. |sum a w| < 128 x 255 x 255 < 2^23; with zero
///   points of 16 bits |zero sum a| < 2^15 x 2^15, so s32 never overflows. With zero points of 8
///   bits both parts are below 2^24, and what goes to fp32 is rounded once. Between strips fp32.
/// Work split: a block of 8 warps computes 16 rows of one linear, or of gate and up one after the
///   other; warp w takes units w, w + 8, ... of columns, and sums are added in the order of warps.
/// Measured: not measured.
/// Lost, by count: codes minus a base as s8, as on the CPU: nothing to correct below 8 bits, but
///   sums of weights are one mma of 32 lanes for 128 weights and need no second arithmetic.

#include "kernels/cuda/integer.h"
#include "kernels/cuda/integer_fields.h"
#include "kernels/cuda/output.h"
#include "kernels/cuda/pack_row.h"
#include "kernels/cuda/weight_tile.h"

namespace oq::cuda {

constexpr int kIntegerWeakSlices = kThreads / kTileRows;
constexpr int kIntegerSlices = kWarps + kIntegerWeakSlices;
constexpr int slices_of(const PackedArgs& call) {
  return call.weak_columns > 0 ? kIntegerSlices : kWarps;
}

/// A block's rows of one form, from row `first` on.
class TokenRows {
 public:
  /// `words` of a row's codes of a strip.
  OQ_DEVICE TokenRows(const QuantizedRows& rows, int form, int strips, int first, int tokens,
                      int words)
      : tokens_(tokens), room_(rows.room), words_(words), weak_room_(rows.weak_room) {
    const int64_t row = int64_t(form) * rows.room + first;
    const int64_t in_strips = int64_t(form) * strips * rows.room + first;
    codes_ = rows.codes + in_strips * words;
    sums_ = reinterpret_cast<const Words4*>(rows.sums) + in_strips;
    grids_ = rows.grids + row;
    weak_ = rows.weak + row * rows.weak_room;
  }

  OQ_DEVICE int tokens() const { return tokens_; }
  /// The first row's codes of a strip.
  OQ_DEVICE const uint32_t* codes(int strip) const {
    return codes_ + int64_t(strip) * room_ * words_;
  }
  /// Sum of codes, and live columns << 16, of a strip's 32 columns `part`, or of all.
  OQ_DEVICE uint32_t sums(int strip, int token, int part, bool whole) const {
    const Words4 four = sums_[int64_t(strip) * room_ + token];
    if (whole) return four.w[0] + four.w[1] + four.w[2] + four.w[3];
    return part == 0 ? four.w[0] : part == 1 ? four.w[1] : part == 2 ? four.w[2] : four.w[3];
  }
  OQ_DEVICE const TokenGrid& grid(int token) const { return grids_[token]; }
  OQ_DEVICE const float* weak(int token) const { return weak_ + int64_t(token) * weak_room_; }

 private:
  int tokens_, room_, words_, weak_room_;
  const uint32_t* codes_;
  const Words4* sums_;
  const TokenGrid* grids_;
  const float* weak_;
};

/// total += scale x (sum a w - zero sum a - a_zero x sum (w - zero)) of one row and token: what
/// stands in parentheses is exact but for its last rounding. Written with every fma that is meant,
/// so that both engines give the same bits.
OQ_DEVICE void add_group(float& total, float scale, int zero, int32_t products, int32_t weights,
                         uint32_t sums, float a_zero) {
  const auto codes = int32_t(sums & 0xFFFFu), live = int32_t(sums >> 16);
  const float sum = fmaf(-a_zero, float(weights - zero * live), float(products - zero * codes));
  total = fmaf(scale, sum, total);
}

/// Weak columns: thread s x 16 + r takes row r and columns s, s + 16, ...
template <int kTokens>
OQ_DEVICE void add_weak_columns(const PackedMatrix& w, int tile, const TokenRows& x, float* parts) {
  const int r = thread_id() % kTileRows, s = thread_id() / kTileRows;
  float sums[kTokens] = {};
  for (int i = s; i < w.weak_columns; i += kIntegerWeakSlices) {
    const float weight = weak_weight(w, (int64_t(tile) * w.weak_columns + i) * kTileRows + r);
    OQ_UNROLL
    for (int m = 0; m < kTokens; ++m) {
      if (m < x.tokens()) sums[m] = fmaf(weight, x.weak(m)[i], sums[m]);
    }
  }
  OQ_UNROLL
  for (int m = 0; m < kTokens; ++m) {
    if (m < x.tokens()) parts[((kWarps + s) * kTileRows + r) * kTokens + m] = sums[m];
  }
}

/// Shared memory of a block: gate's results and partial sums; then, fused, codes.
template <int kTokens>
constexpr size_t own_codes_offset(int slices) {
  return round_up(size_t(slices + 1) * kTileRows * kTokens * sizeof(float), 256);
}

/// The block's own form of its rows, in shared memory.
OQ_DEVICE QuantizedRows rows_in(std::byte* base, int tokens, const PackedMatrix& w) {
  const QuantizedOffsets o(1, tokens, w.strips(), w.weak_columns);
  return {.form_per_linear = false,
          .room = tokens,
          .weak_room = w.weak_columns,
          .codes = reinterpret_cast<uint32_t*>(base),
          .sums = reinterpret_cast<int32_t*>(base + o.sums),
          .grids = reinterpret_cast<TokenGrid*>(base + o.grids),
          .stats = reinterpret_cast<RowStats*>(base + o.stats),
          .weak = reinterpret_cast<float*>(base + o.weak)};
}

/// What `quantize` does, by one block for itself.
OQ_DEVICE void quantize_here(Engine engine, const InputArgs& in, int expert, const PackedMatrix& w,
                             const QuantizedRows& to, float* scratch) {
  const int tokens = row_count(in, expert);
  if (in.per_tensor) {
    for (int i = 0; i < tokens; ++i) {
      const RowStats s = measure(in.norm, {row_of(in, expert, i), w.cols, w.weak_mask}, scratch);
      if (thread_id() == 0) to.stats[i] = s;
    }
    sync_block();
  }
  for (int i = 0; i < tokens; ++i) {
    const SourceRow row{row_of(in, expert, i), w.cols, w.weak_mask};
    const RowStats s =
        in.per_tensor ? joined(in, expert, to.stats, i, scratch) : measure(in.norm, row, scratch);
    pack_row(engine, in, s, row, w, to, 0, i);
  }
  sync_block();
}

/// Multiplier(matrix, tile, x, bits).run(parts) leaves parts[warp][row][kTokens]; its constructor
/// starts to load weights and looks at nothing of x but how many tokens there are.
template <class Multiplier>
OQ_DEVICE void run_integers(const IntegerArgs& args) {
  constexpr int kTokens = Multiplier::kTokens;
  const bool fused = kTokens <= kMaxTokens && args.fused;
  const PackedArgs& call = args.linears;
  const bool experts = call.experts != nullptr, pair = call.out.finish == Finish::activate;
  const int chunks = (call.in.tokens + kTokens - 1) / kTokens;
  const int expert = block_y() / chunks, first = block_y() % chunks * kTokens;
  const int rest = (experts ? call.in.count[expert] : call.in.tokens) - first;
  const int tokens = rest < kTokens ? rest : kTokens;
  if (tokens <= 0) return;
  OutputArgs out = call.out;
  out.y += expert * out.expert_stride;
  auto* gate = reinterpret_cast<float*>(shared_memory());
  float* parts = gate + kTileRows * kTokens;
  std::byte* own_codes = shared_memory() + own_codes_offset<kTokens>(slices_of(call));
  int from = 0, tile = block_x();
  if (!pair) find_tile(call, from, tile);
  const int end = pair ? call.count : from + 1;
  for (int l = from; l < end; ++l) {
    const LinearArgs<PackedMatrix>& linear =
        experts ? call.experts[expert * call.count + l] : call.linears[l];
    const PackedMatrix& w = linear.matrix;
    const QuantizedRows rows = fused ? rows_in(own_codes, call.in.tokens, w) : args.rows;
    const int form = fused ? 0 : rows.form_per_linear ? expert * call.count + l : expert;
    const int words = code_words(args.engine, call.in.bits);
    const TokenRows x(rows, form, w.strips(), first, tokens, words);
    Multiplier multiplier(w, tile, x, call.in.bits);
    if (fused && (l == from || call.weak_columns > 0)) {  // else those of the linear before
      quantize_here(args.engine, call.in, expert, w, rows, parts);
    }
    multiplier.run(parts);
    if (w.weak_columns > 0) add_weak_columns<kTokens>(w, tile, x, parts);
    sync_block();
    const int slices = w.weak_columns > 0 ? kIntegerSlices : kWarps;
    for (int i = thread_id(); i < kTileRows * tokens; i += block_threads()) {
      const int r = i % kTileRows, m = i / kTileRows, row = tile * kTileRows + r;
      if (row >= w.rows) continue;
      float sum = linear.bias == nullptr ? 0.0f : linear.bias[row];
      for (int s = 0; s < slices; ++s) sum += parts[(s * kTileRows + r) * kTokens + m];
      finish(out, false, first + m, linear.column + row, sum, &gate[m * kTileRows + r], l == from,
             l + 1 == end);
    }
    sync_block();
  }
}

/// Shared memory of a fused call, at the most.
template <int kTokens>
size_t fused_shared(const PackedArgs& call) {
  size_t codes = 0;
  for (int l = 0; l < call.count; ++l) {
    const QuantizedOffsets o(1, call.in.tokens, call.linears[l].matrix.strips(), call.weak_columns);
    codes = o.bytes > codes ? o.bytes : codes;
  }
  return own_codes_offset<kTokens>(slices_of(call)) + codes;
}

template <class Multiplier>
Grid integer_grid(const IntegerArgs& args) {
  constexpr int kTokens = Multiplier::kTokens;
  const PackedArgs& call = args.linears;
  int tiles = 0;
  for (int l = 0; l < call.count; ++l) {
    const int own = call.linears[l].matrix.tiles;
    tiles = call.out.finish == Finish::activate ? (own > tiles ? own : tiles) : tiles + own;
  }
  const int chunks = (call.in.tokens + kTokens - 1) / kTokens;
  return {.x = tiles,
          .y = chunks * (call.experts != nullptr ? call.expert_count : 1),
          .threads = kThreads,
          .shared = args.fused ? fused_shared<kTokens>(call)
                               : own_codes_offset<kTokens>(slices_of(call))};
}

}  // namespace oq::cuda
