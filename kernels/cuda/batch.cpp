#include "kernels/cuda/batch.h"

#include <algorithm>

#include "format/bytes.h"

namespace oq::cuda {
namespace {

/// Blocks that a device should have to work on. It is no device's number of processors, for sums
/// must not depend on where they are made.
constexpr int kBlocksWanted = 128;
constexpr int kRowsOfBlock = 8 * kTileRows;
/// f16 weights at once: they should still be in the second-level cache when they are multiplied.
constexpr size_t kWeightBytes = size_t(16) << 20;

int round_to(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

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
              .splits = 1,
              .block_tiles = kBlockTokens / kTokenTile,
              .dequantized = 0,
              .operand = 0,
              .down = 0,
              .weak = 0,
              .parts = 0,
              .weights = 0,
              .bytes = 0};
  if (gemm) {
    const auto fit = int(kWeightBytes / (size_t(p.padded_cols) * 2)) / kTileRows * kTileRows;
    p.dequantized = std::clamp(fit, kTileRows, p.padded_rows);
  } else {
    const int blocks = (p.padded_rows + kRowsOfBlock - 1) / kRowsOfBlock * p.experts *
                       ((p.tokens + kBlockTokens - 1) / kBlockTokens);
    p.splits = std::clamp(kBlocksWanted / blocks, 1, m.units);
  }
  const auto place = [&](size_t bytes) {
    const size_t at = p.bytes;
    p.bytes = round_up(at + bytes, 256);
    return at;
  };
  const auto tokens = size_t(p.experts) * size_t(p.tokens);
  p.operand = place(gemm ? tokens * size_t(p.padded_cols) * 2
                         : tokens / kTokenTile * size_t(p.column_blocks) *
                               size_t(operand_bytes(p.how.precise)));
  p.down = place(tokens * sizeof(float));
  p.weak = place(tokens * size_t(p.weak_columns) * sizeof(float));
  p.parts = place(tokens * size_t(p.splits) * size_t(p.padded_rows) * sizeof(float));
  p.weights = place(size_t(p.dequantized) * size_t(p.padded_cols) * 2);
  return p;
}

/// True where what was prepared for the linear before is right for this one too: without weak
/// columns both see the same live ones, and their scratch begins alike.
bool is_prepared(const PackedArgs& args, int l) {
  return l > 0 && args.linears[l].matrix.weak_columns == 0 &&
         args.linears[l - 1].matrix.weak_columns == 0;
}

void multiply_by_gemm(Stream& stream, BatchArgs args, Gemm& gemm) {
  const BatchPlan& p = args.plan;
  for (int row = 0; row < p.padded_rows; row += p.dequantized) {
    args.first_row = row;
    args.plan.dequantized = std::min(p.dequantized, p.padded_rows - row);
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
  const size_t bytes = batch_bytes(args, how);
  if (space.memory.bytes() < bytes) {
    stream.synchronize();  // what runs may still use it
    space.memory = Memory();
    space.memory = Memory(bytes);
  }
  if (how.engine == BatchEngine::gemm && space.gemm == nullptr) {
    space.gemm = std::make_unique<Gemm>(stream);
  }
  for (int l = 0; l < args.count; ++l) {
    const BatchPlan plan = plan_of(args, l, how);
    std::byte* scratch = space.memory.data();
    const BatchArgs one{.in = args.in,
                        .out = args.out,
                        .linear = args.linears[l],
                        .experts = args.experts == nullptr ? nullptr : args.experts + l,
                        .expert_step = args.count,
                        .first = l == 0,
                        .last = l + 1 == args.count,
                        .first_row = 0,
                        .plan = plan,
                        .operand = scratch + plan.operand,
                        .down = reinterpret_cast<float*>(scratch + plan.down),
                        .weak = reinterpret_cast<float*>(scratch + plan.weak),
                        .parts = reinterpret_cast<float*>(scratch + plan.parts),
                        .weights = reinterpret_cast<uint16_t*>(scratch + plan.weights)};
    if (!is_prepared(args, l)) batch_prepare(stream, one);
    if (how.engine == BatchEngine::gemm) {
      multiply_by_gemm(stream, one, *space.gemm);
    } else {
      batch_multiply(stream, one);
    }
    batch_finish(stream, one);
  }
}

}  // namespace oq::cuda
