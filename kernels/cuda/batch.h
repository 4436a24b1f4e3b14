#pragma once

#include "kernels/cuda/kernels.h"

/// Linears of more than 8 tokens. One linear is a few launches in a row:
///
///   tiles:  prepare, multiply (mma on packed weights), finish
///   gemm:   prepare, then for rows by the megabyte: dequantize, Gemm; finish
///   dense:  prepare, then for rows by the megabyte: Gemm, finish
///
/// The norm is worked out once, by `prepare`, not by every block as in decode: a
/// batch has the work to pay for a launch. `finish` adds partial sums, bias and weak columns.
namespace oq::cuda {

constexpr int kBlockTokens = 64;  ///< of a block of `multiply` at the most
constexpr int kTokenTile = 8;     ///< columns of an mma
/// Processors that work is cut for: an H100's, on every device, for sums must not depend on where
/// they are made.
constexpr int kProcessors = 132;
constexpr int kOperandCols = 32;  ///< two mma deep: 16 bytes a lane

/// Activations for `multiply`: [expert][32 columns][8 tokens][this many bytes]. One is the B
/// fragments of two mma, lane 4 g + q having token g and columns 2 q, 2 q + 1 and those 8, 16 and
/// 24 further; hi, then lo where `precise`; then the tokens' 8 sums over the columns, in floats.
constexpr int operand_bytes(bool precise) { return (precise ? 1024 : 512) + kTokenTile * 4; }

/// The sizes of one linear's launches, and where in scratch memory things lie.
struct BatchPlan {
  BatchHow how;
  int experts = 1;
  int tokens = 0;         ///< of each expert at most, rounded up to tiles of 8
  int column_blocks = 0;  ///< of 32: whole units
  int padded_cols = 0;    ///< of f16 rows
  int padded_rows = 0;    ///< tiles of 16
  int weak_columns = 0;   ///< at most; with `gemm`, 0: they are in the f16 weights
  int splits = 1;         ///< of the columns, each summed by a block of its own
  int block_tiles = 0;    ///< tiles of 8 tokens of a block of `multiply`: its shared memory's room
  int dequantized = 0;    ///< rows at once
  size_t operand = 0, down = 0, weak = 0, parts = 0, weights = 0, bytes = 0;

  constexpr int token_tiles() const { return tokens / kTokenTile; }
  constexpr int chunks() const { return (token_tiles() + block_tiles - 1) / block_tiles; }
};

/// What every launch of one linear gets.
struct BatchArgs {
  InputArgs in;
  OutputArgs out;
  LinearArgs<PackedMatrix> linear;          ///< with experts: the largest shape; dense: its shape
  const LinearArgs<PackedMatrix>* experts;  ///< the first's, or nullptr
  int expert_step;                          ///< from one expert's to the next's
  bool first, last;                         ///< of the linears that Finish::activate multiplies
  int first_row;                            ///< of `dequantize`
  BatchPlan plan;
  // Scratch memory, as the plan says.
  std::byte* operand;
  float* down;        ///< [expert][token] what undoes the power of two of a token
  float* weak;        ///< [expert][token][plan.weak_columns] what meets weak columns
  float* parts;       ///< [expert][split][token][padded_rows]
  uint16_t* weights;  ///< [row][padded_cols]
};

// The steps, each a kernel of the dispatch table.

/// Operand or f16 rows, the power of two of each token, and what meets weak columns.
void batch_prepare(Stream& stream, const BatchArgs& args);
/// Sums of the codes' splits into `parts`.
void batch_multiply(Stream& stream, const BatchArgs& args);
/// Rows [first_row, first_row + plan.dequantized) as f16 [row][padded_cols], weak columns included.
void batch_dequantize(Stream& stream, const BatchArgs& args);
void batch_finish(Stream& stream, const BatchArgs& args);

}  // namespace oq::cuda
