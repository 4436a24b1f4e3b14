/// The two ends of a linear of many tokens: its activations as `multiply` or a matrix product wants
/// them, and its sums into y.
///
/// Regime: more than 8 tokens. Bound: the second-level cache; `prepare` reads a row three to six
///   times and writes 2 or 4 bytes a column, `finish` reads 4 bytes a split and element.
/// Layout: batch.h. A warp prepares 32 columns of one token: its bytes of a fragment are 64
///   neighbouring ones.
/// Work split: `prepare`, a block for each token (and expert); `finish`, a thread for each row of
///   weights and 8 tokens, so that a weak weight is read once for all eight.
/// Sums: splits in their order, then bias, then weak columns in ascending order, in fp32.
/// Measured: not measured.

#include "kernels/cuda/batch.h"
#include "kernels/cuda/fields.h"
#include "kernels/cuda/input.h"
#include "kernels/cuda/output.h"

namespace oq::cuda {
namespace {

constexpr int kFinishThreads = 128;

OQ_DEVICE const LinearArgs<PackedMatrix>& linear_of(const BatchArgs& a) {
  return a.experts == nullptr ? a.linear : a.experts[int64_t(block_y()) * a.expert_step];
}
OQ_DEVICE int64_t token_of(const BatchArgs& a, int m) {
  return int64_t(block_y()) * a.plan.tokens + m;
}

/// What meets weak columns, in floats, as it is.
OQ_DEVICE void leave_weak(const BatchArgs& a, const PackedMatrix& w, const BlockInput& input,
                          int64_t token) {
  for (int i = thread_id(); i < w.weak_columns; i += kThreads) {
    a.weak[token * a.plan.weak_columns + i] = input.normed(0, int(w.weak_index[i]));
  }
}

/// A column as hi and lo; what is left of it in them.
OQ_DEVICE float split(float x, bool precise, uint16_t& hi, uint16_t& lo) {
  hi = float_to_half(x);
  const float rest = x - half_to_float(hi);
  lo = precise ? float_to_half(rest) : uint16_t(0);
  return half_to_float(hi) + half_to_float(lo);
}

__global__ void __launch_bounds__(kThreads) prepare_fragments(BatchArgs a) {
  const int m = block_x(), l = lane_id();
  if (a.in.count != nullptr && m >= a.in.count[block_y()]) return;
  const PackedMatrix& w = linear_of(a).matrix;
  auto* stats = reinterpret_cast<TokenStats*>(shared_memory());
  auto* scratch = reinterpret_cast<float*>(stats + 1);
  const BlockInput input(a.in, w.cols, w.weak_mask, stats, scratch, m, 1);
  const bool precise = a.plan.how.precise;
  const int tile_bytes = operand_bytes(precise);
  const int place = (m % 8 * 4 + l % 8 / 2) * 16 + (l / 16 * 2 + l / 8 % 2) * 4 + l % 2 * 2;
  for (int block = warp_id(); block < a.plan.column_blocks; block += kWarps) {
    const int k = kOperandCols * block + l;
    const int power = field_power(w.field_bits, k % kStripCols / 8);
    const float raised = bits_to_float(uint32_t(127 + power) << 23);
    const float lowered = bits_to_float(uint32_t(127 - power) << 23);
    uint16_t hi, lo;
    const float kept = split(input.live(0, k) * input.stats(0).up * lowered, precise, hi, lo);
    const float sum = warp_reduce<Sum>(kept * raised);
    const int64_t at =
        (int64_t(block_y()) * a.plan.column_blocks + block) * a.plan.token_tiles() + m / 8;
    std::byte* tile = a.operand + at * tile_bytes;
    *reinterpret_cast<uint16_t*>(tile + place) = hi;
    if (precise) *reinterpret_cast<uint16_t*>(tile + 512 + place) = lo;
    if (l == 0) *reinterpret_cast<float*>(tile + tile_bytes - 32 + m % 8 * 4) = sum;
  }
  leave_weak(a, w, input, token_of(a, m));
  if (thread_id() == 0) a.down[token_of(a, m)] = input.stats(0).down;
}

/// Weak columns are among the f16 weights, and what meets them among the others.
__global__ void __launch_bounds__(kThreads) prepare_rows(BatchArgs a) {
  const int m = block_x();
  auto* stats = reinterpret_cast<TokenStats*>(shared_memory());
  auto* scratch = reinterpret_cast<float*>(stats + 1);
  const BlockInput input(a.in, a.linear.matrix.cols, nullptr, stats, scratch, m, 1);
  uint16_t* to = reinterpret_cast<uint16_t*>(a.operand) + int64_t(m) * a.plan.padded_cols;
  for (int k = thread_id(); k < a.plan.padded_cols; k += kThreads) {
    to[k] = float_to_half(input.live(0, k) * input.stats(0).up);
  }
  if (thread_id() == 0) a.down[m] = input.stats(0).down;
}

/// sums[m] += weak columns x what meets them, of 8 tokens.
OQ_DEVICE void add_weak(const BatchArgs& a, const PackedMatrix& w, int row, int first,
                        float sums[kTokenTile]) {
  const int64_t weights = int64_t(row / kTileRows) * w.weak_columns * kTileRows + row % kTileRows;
  const float* x = a.weak + token_of(a, first) * a.plan.weak_columns;
  for (int i = 0; i < w.weak_columns; ++i) {
    const float weight = weak_weight(w, weights + int64_t(i) * kTileRows);
    OQ_UNROLL
    for (int m = 0; m < kTokenTile; ++m) {  // rows of tokens that are not there are never used
      sums[m] += weight * x[int64_t(m) * a.plan.weak_columns + i];
    }
  }
}

__global__ void __launch_bounds__(kFinishThreads) finish_kernel(BatchArgs a) {
  const int row_blocks = (a.linear.matrix.rows + kFinishThreads - 1) / kFinishThreads;
  const int row = block_x() % row_blocks * kFinishThreads + thread_id();
  const int first = block_x() / row_blocks * kTokenTile;
  const int tokens = a.in.count == nullptr ? a.in.tokens : a.in.count[block_y()];
  const LinearArgs<PackedMatrix>& linear = linear_of(a);
  if (row >= linear.matrix.rows || first >= tokens) return;
  const bool experts = a.experts != nullptr;
  const float bias = linear.bias == nullptr ? 0.0f : linear.bias[row];
  float sums[kTokenTile] = {};
  OQ_UNROLL
  for (int m = 0; m < kTokenTile; ++m) {
    if (first + m >= tokens) continue;
    float sum = 0;
    for (int s = 0; s < a.plan.splits; ++s) {
      const int64_t part = (int64_t(block_y()) * a.plan.splits + s) * a.plan.tokens + first + m;
      sum += a.parts[part * a.plan.padded_rows + row];
    }
    sums[m] = sum * a.down[token_of(a, first + m)] + bias;
  }
  if (a.plan.weak_columns > 0) add_weak(a, linear.matrix, row, first, sums);
  OQ_UNROLL
  for (int m = 0; m < kTokenTile; ++m) {
    if (first + m >= tokens) continue;
    // The first of two linears waits for the second in y itself.
    float* y = output_row(a.out, experts, first + m) + linear.column + row;
    finish(a.out, experts, first + m, linear.column + row, sums[m], y, a.first, a.last);
  }
}

constexpr size_t kPrepareShared = sizeof(TokenStats) + kWarps * sizeof(float);

}  // namespace

void start_prepare_fragments(Stream& stream, const BatchArgs& a) {
  launch(stream, "prepare", prepare_fragments,
         {.x = a.in.tokens, .y = a.plan.experts, .threads = kThreads, .shared = kPrepareShared}, a);
}
void start_prepare_rows(Stream& stream, const BatchArgs& a) {
  launch(stream, "prepare", prepare_rows,
         {.x = a.in.tokens, .y = 1, .threads = kThreads, .shared = kPrepareShared}, a);
}
void start_finish(Stream& stream, const BatchArgs& a) {
  const int row_blocks = (a.linear.matrix.rows + kFinishThreads - 1) / kFinishThreads;
  launch(stream, "finish", finish_kernel,
         {.x = row_blocks * a.plan.token_tiles(), .y = a.plan.experts, .threads = kFinishThreads},
         a);
}

}  // namespace oq::cuda
