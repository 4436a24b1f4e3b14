#include "kernels/cuda/batch.h"

#include <algorithm>

#include "format/bytes.h"

namespace oq::cuda {
namespace {

constexpr int kRowsOfBlock = 8 * kTileRows;
/// f16 weights made from packed ones, or sums of dense weights, at once: they should still be in
/// the second-level cache when they are used. But a product should have two tiles of 128 x 128 for
/// each processor, up to the second bound.
constexpr size_t kBytesAtOnce = size_t(16) << 20, kMostBytesAtOnce = size_t(128) << 20;

/// Rows of weights of a product, of `row_bytes` each in scratch memory.
int rows_at_once(int rows, int tokens, size_t row_bytes) {
  constexpr int kTile = 128;
  const int tiles = 2 * kProcessors / ((tokens + kTile - 1) / kTile) + 1;
  const auto fit = [&](size_t bytes) { return int(std::min<size_t>(bytes / row_bytes, 1 << 30)); };
  const int wanted = std::max(fit(kBytesAtOnce), std::min(tiles * kTile, fit(kMostBytesAtOnce)));
  return std::clamp(wanted / kTileRows * kTileRows, kTileRows, rows);
}

/// Blocks that share the columns of what `blocks` blocks have to do: so many that the last round of
/// processors is nearly full, for one block fits each at a time.
int splits_of(int blocks, int units) {
  if (blocks >= kProcessors) return 1;
  const int most = std::min(units, std::max(4, kProcessors / blocks));
  int best = 1;
  const auto rounds = [&](int s) { return (blocks * s + kProcessors - 1) / kProcessors; };
  for (int s = 2; s <= most; ++s) {
    if (rounds(s) * best < rounds(best) * s) best = s;
  }
  return best;
}

int round_to(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

/// Where things lie in scratch memory.
void place_scratch(BatchPlan& p) {
  const auto place = [&](size_t bytes) {
    const size_t at = p.bytes;
    p.bytes = round_up(at + bytes, 256);
    return at;
  };
  const auto tokens = size_t(p.experts) * size_t(p.tokens);
  const bool rows = p.how.engine == BatchEngine::gemm;
  p.operand = place(rows ? tokens * size_t(p.padded_cols) * 2
                         : tokens / kTokenTile * size_t(p.column_blocks) *
                               size_t(operand_bytes(p.how.precise)));
  p.down = place(tokens * sizeof(float));
  p.weak = place(tokens * size_t(p.weak_columns) * sizeof(float));
  p.parts = place(tokens * size_t(p.splits) * size_t(p.padded_rows) * sizeof(float));
  p.weights = place(size_t(p.dequantized) * size_t(p.padded_cols) * 2);
}

BatchPlan plan_of(const PackedArgs& args, int l, BatchHow how) {
  const PackedMatrix& m = args.linears[l].matrix;
  const bool gemm = how.engine == BatchEngine::gemm;
  BatchPlan p{.how = {how.engine, how.precise && !gemm},
              .experts = args.experts == nullptr ? 1 : args.expert_count,
              .tokens = round_to(args.in.tokens, kTokenTile),
              .column_blocks = m.strips() * (kStripCols / kOperandCols),
              .padded_cols = round_to(m.cols, 8),
              .padded_rows = m.tiles * kTileRows,
              .weak_columns = gemm ? 0 : m.weak_columns,
              .block_tiles = kBlockTokens / kTokenTile};
  if (gemm) {
    p.dequantized = how.rows > 0 ? std::min(how.rows, p.padded_rows)
                                 : rows_at_once(p.padded_rows, p.tokens, size_t(p.padded_cols) * 2);
  } else {
    const int blocks = (p.padded_rows + kRowsOfBlock - 1) / kRowsOfBlock * p.experts *
                       ((p.tokens + kBlockTokens - 1) / kBlockTokens);
    p.splits = splits_of(blocks, m.units);
  }
  place_scratch(p);
  return p;
}

/// Of rows of a dense matrix, as many as go at once.
BatchPlan plan_of(const DenseArgs& args, const DenseMatrix& m, int rows) {
  const int tokens = round_to(args.in.tokens, kTokenTile), all = round_to(m.rows, kTileRows);
  BatchPlan p{.how = {BatchEngine::gemm, false},
              .tokens = tokens,
              .padded_cols = m.stride,
              .padded_rows = rows > 0 ? std::min(rows, all)
                                      : rows_at_once(all, tokens, size_t(tokens) * sizeof(float))};
  place_scratch(p);
  return p;
}

/// True where what was prepared for the linear before is right for this one too: rows of f16 always
/// are, fragments where both see the same live columns. Their scratch begins alike.
bool is_prepared(const PackedArgs& args, int l, BatchEngine engine) {
  return l > 0 && (engine == BatchEngine::gemm || (args.linears[l].matrix.weak_columns == 0 &&
                                                   args.linears[l - 1].matrix.weak_columns == 0));
}

/// `scratch` as the plan says.
BatchArgs args_of(const InputArgs& in, const OutputArgs& out, const BatchPlan& plan,
                  std::byte* scratch) {
  return {.in = in,
          .out = out,
          .linear = {},
          .experts = nullptr,
          .expert_step = 0,
          .first = true,
          .last = true,
          .first_row = 0,
          .plan = plan,
          .operand = scratch + plan.operand,
          .down = reinterpret_cast<float*>(scratch + plan.down),
          .weak = reinterpret_cast<float*>(scratch + plan.weak),
          .parts = reinterpret_cast<float*>(scratch + plan.parts),
          .weights = reinterpret_cast<uint16_t*>(scratch + plan.weights)};
}

void make_room(Stream& stream, BatchSpace& space, size_t bytes, bool gemm) {
  if (space.memory.bytes() < bytes) {
    stream.synchronize();  // what runs may still use it
    space.memory = Memory();
    space.memory = Memory(bytes);
  }
  if (gemm && space.gemm == nullptr) space.gemm = std::make_unique<Gemm>(stream);
}

void multiply_by_gemm(Stream& stream, BatchArgs args, Gemm& gemm) {
  const BatchPlan& p = args.plan;
  const int step = p.dequantized;
  for (int row = 0; row < p.padded_rows; row += step) {
    args.first_row = row;
    args.plan.dequantized = std::min(step, p.padded_rows - row);
    batch_dequantize(stream, args);
    gemm.run({.m = args.in.tokens,
              .n = args.plan.dequantized,
              .k = p.padded_cols,
              .a = reinterpret_cast<const uint16_t*>(args.operand),
              .lda = p.padded_cols,
              .b = args.weights,
              .ldb = p.padded_cols,
              .c = args.parts + row,
              .ldc = p.padded_rows});
  }
}

}  // namespace

size_t batch_bytes(const PackedArgs& args, BatchHow how) {
  size_t most = 0;
  for (int l = 0; l < args.count; ++l) most = std::max(most, plan_of(args, l, how).bytes);
  return most;
}

void batch_linears(Stream& stream, const PackedArgs& args, BatchHow how, BatchSpace& space) {
  const bool gemm = how.engine == BatchEngine::gemm;
  make_room(stream, space, batch_bytes(args, how), gemm);
  for (int l = 0; l < args.count; ++l) {
    BatchArgs one = args_of(args.in, args.out, plan_of(args, l, how), space.memory.data());
    one.linear = args.linears[l];
    one.experts = args.experts == nullptr ? nullptr : args.experts + l;
    one.expert_step = args.count;
    one.first = l == 0;
    one.last = l + 1 == args.count;
    if (!is_prepared(args, l, how.engine)) batch_prepare(stream, one);
    if (gemm) {
      multiply_by_gemm(stream, one, *space.gemm);
    } else {
      batch_multiply(stream, one);
    }
    batch_finish(stream, one);
  }
}

size_t batch_bytes(const DenseArgs& args, int rows) {
  size_t most = 0;
  for (int l = 0; l < args.count; ++l) {
    most = std::max(most, plan_of(args, args.linears[l].matrix, rows).bytes);
  }
  return most;
}

/// A few rows of a linear are a linear themselves, further right in y.
void batch_linears(Stream& stream, const DenseArgs& args, BatchSpace& space, int rows) {
  make_room(stream, space, batch_bytes(args, rows), true);
  for (int l = 0; l < args.count; ++l) {
    const LinearArgs<DenseMatrix>& linear = args.linears[l];
    const DenseMatrix& m = linear.matrix;
    const BatchPlan plan = plan_of(args, m, rows);
    BatchArgs part = args_of(args.in, args.out, plan, space.memory.data());
    part.first = l == 0;
    part.last = l + 1 == args.count;
    part.linear.matrix.cols = m.cols;
    if (l == 0) batch_prepare(stream, part);
    for (int row = 0; row < m.rows; row += plan.padded_rows) {
      part.linear.matrix.rows = std::min(plan.padded_rows, m.rows - row);
      part.linear.bias = linear.bias == nullptr ? nullptr : linear.bias + row;
      part.linear.column = linear.column + row;
      space.gemm->run({.m = args.in.tokens,
                       .n = part.linear.matrix.rows,
                       .k = m.stride,
                       .a = reinterpret_cast<const uint16_t*>(part.operand),
                       .lda = m.stride,
                       .b = static_cast<const uint16_t*>(m.data) + int64_t(row) * m.stride,
                       .ldb = m.stride,
                       .c = part.parts,
                       .ldc = plan.padded_rows});
      batch_finish(stream, part);
    }
  }
}

}  // namespace oq::cuda
