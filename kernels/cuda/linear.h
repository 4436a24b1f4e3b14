#pragma once

#include <algorithm>

#include "kernels/cuda/input.h"
#include "kernels/cuda/output.h"

/// What every linear of 1 to 8 tokens has in common, whatever its weights are.
///
/// Work split: a block of 8 warps computes 16 rows of one linear, or of gate and up one after the
/// other. Its warps share the columns; their sums meet in shared memory and are added in the order
/// of warps. A Multiplier knows the weights:
///   Multiplier(matrix, tile)      starts its first loads
///   kSlices, slices()             partial sums of each row and token that it leaves, at the most
///   run(input, room, slab, parts) leaves parts[slice][row][room tokens]
///   slab_bytes(cols, tokens, most) of activations in shared memory, as many as fit `most`
namespace oq::cuda {

/// Shared memory of a block: statistics, scratch, gate's results, partial sums, activations.
struct LinearShared {
  static constexpr size_t kStats = kMaxTokens * sizeof(TokenStats);
  static constexpr size_t kScratch = 64;
  static constexpr size_t kGate = size_t(kTileRows) * kMaxTokens * sizeof(float);
  static constexpr size_t parts(int slices, int tokens) {
    return size_t(slices) * kTileRows * size_t(tokens) * sizeof(float);
  }
  static constexpr size_t slab_offset(int slices, int tokens) {
    return (kStats + kScratch + kGate + parts(slices, tokens) + 127) / 128 * 128;
  }
};

/// Activations of a block at the most, where the device gives a block as much: two blocks fit an SM
/// of 8.0, 9.0 or 10.0. Sums are the same whatever the size: a warp has its units of columns.
constexpr size_t kSlabBytes = 72 << 10;

/// The activations in shared memory.
struct Slab {
  std::byte* data;
  int bytes;  ///< room
};

template <class Multiplier, class Matrix>
OQ_DEVICE void run_linears(const LinearsArgs<Matrix>& args) {
  const bool experts = args.experts != nullptr;
  if (experts && args.in.count[block_y()] <= args.in.first) return;
  std::byte* shared = shared_memory();
  auto* stats = reinterpret_cast<TokenStats*>(shared);
  auto* scratch = reinterpret_cast<float*>(shared + LinearShared::kStats);
  auto* gate = scratch + LinearShared::kScratch / sizeof(float);
  float* parts = gate + kTileRows * kMaxTokens;
  const Slab slab{shared + LinearShared::slab_offset(Multiplier::kSlices, args.in.tokens),
                  args.slab_bytes};

  const bool pair = args.out.finish == Finish::activate;
  int first = 0, tile = block_x();
  if (!pair) find_tile(args, first, tile);
  const int end = pair ? args.count : first + 1;
  for (int l = first; l < end; ++l) {
    const LinearArgs<Matrix>& linear =
        experts ? args.experts[block_y() * args.count + l] : args.linears[l];
    Multiplier multiplier(linear.matrix, tile);
    const BlockInput input(args.in, linear.matrix.cols, multiplier.weak_mask(), stats, scratch,
                           args.in.first, args.in.tokens);
    multiplier.run(input, args.in.tokens, slab, parts);
    sync_block();
    for (int i = thread_id(); i < kTileRows * input.tokens(); i += block_threads()) {
      const int r = i % kTileRows, m = i / kTileRows, row = tile * kTileRows + r;
      if (row >= linear.matrix.rows) continue;
      float sum = linear.bias == nullptr ? 0.0f : linear.bias[row];
      for (int s = 0; s < multiplier.slices(); ++s) {
        sum += parts[(s * kTileRows + r) * args.in.tokens + m];
      }
      finish(args.out, experts, m, linear.column + row, sum, &gate[m * kTileRows + r], l == first,
             l + 1 == end);
    }
    sync_block();
  }
}

/// Blocks and shared memory of a call. `matrix` of the linears is the host's copy.
template <class Multiplier, class Matrix>
Grid linear_grid(const LinearsArgs<Matrix>& args) {
  int tiles = 0, cols = 0;
  for (int l = 0; l < args.count; ++l) {
    const Matrix& m = args.linears[l].matrix;
    const int own = (m.rows + kTileRows - 1) / kTileRows;
    tiles = args.out.finish == Finish::activate ? (own > tiles ? own : tiles) : tiles + own;
    cols = m.cols > cols ? m.cols : cols;
  }
  return {.x = tiles,
          .y = args.experts == nullptr ? 1 : args.expert_count,
          .threads = kThreads,
          .shared = LinearShared::slab_offset(Multiplier::kSlices, args.in.tokens) +
                    Multiplier::slab_bytes(cols, args.in.tokens, args.slab_bytes)};
}

/// Starts a linear's kernel, with what room for activations the device has.
template <class Multiplier, class Matrix>
void launch_linears(Stream& stream, const char* name, void (*kernel)(LinearsArgs<Matrix>),
                    LinearsArgs<Matrix> args) {
  const size_t before = LinearShared::slab_offset(Multiplier::kSlices, args.in.tokens);
  args.slab_bytes = int(std::min(kSlabBytes, stream.block_shared() - before));
  launch(stream, name, kernel, linear_grid<Multiplier>(args), args);
}

}  // namespace oq::cuda
