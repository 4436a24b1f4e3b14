#pragma once

#include <algorithm>
#include <type_traits>

#if defined(__x86_64__)
#include "kernels/cpu/x86/dot.h"
#else
#include "kernels/cpu/neon/dot.h"
#endif

/// Packed linears with integer activations: how a tile of tokens goes through panels of codes. What
/// becomes of a block's sums is the tile's business: packed_int8.cpp and packed_grid.cpp.
///
/// Regime: decode (1 token) and prefill (tiles of tokens). Layout: panels of 8 rows, column blocks
/// of 32 (SPEC.md). Work split: the caller gives panels; a panel is read once per tile of tokens,
/// front to back. A lane is a row, so no horizontal sums; four activations at a time meet all rows,
/// by `maddubs` (AVX2), `vpdpbusd` (AVX-512), `smlal` (NEON) or `sdot` (NEON with dotprod). Half a
/// block shares an activation scale. With AVX-512 a tile goes through two panels at once, in the
/// halves of 512-bit vectors: as many multiplications a cycle as with 256 bits on Zen 4, but half
/// the instructions to keep in flight. One token takes one panel: two are two streams of 8 KiB
/// each, which memory serves at half the speed. Bound: memory at one token, multiplications beyond.
/// Measured on x86: docs/kernels.md. Lost there: plain rows with one dot product each, 16-row
/// panels, two 256-bit panels at once. NEON was not timed.
namespace oq::cpu::OQ_ISA {

constexpr int64_t kAhead = 4096;  ///< bytes of a panel from a block to what is prefetched with it

/// Codes, scales and zero points of kPanels panels, read side by side.
template <int kPanels>
class Panels {
 public:
  using L = Lanes<kPanels>;

  explicit Panels(const PackedView& w, int64_t first) : zeros_(w), first_(first) {
    for (int p = 0; p < kPanels; ++p) {
      codes[p] = w.codes(uint64_t(first + p));
      scales_[p] = w.scales(uint64_t(first + p));
      // Needed last, and from a place of their own.
      const int64_t weak = w.layout().packing.weak_columns;
      prefetch_lines<1>(w.weak(uint64_t(first + p)), 0, weak * kPanelRows * 2);
    }
  }
  typename L::Floats scale(int64_t group) const {
    Floats own[kPanels];
    for (int p = 0; p < kPanels; ++p) own[p] = load_floats(scales_[p] + group * kPanelRows);
    return L::join(own);
  }
  typename L::Floats zero(int64_t group) const {
    Floats own[kPanels];
    for (int p = 0; p < kPanels; ++p) own[p] = zeros_(first_ + p, group);
    return L::join(own);
  }

  const uint8_t* codes[kPanels];

 private:
  ZeroReader zeros_;
  int64_t first_;
  const f16* scales_[kPanels];
};

/// The column blocks that Tile::end_group may be called after at the latest: 32-bit sums of
/// products of at most 255 * 128 in magnitude hold those of 65793 columns.
constexpr int64_t kMostBlocks = 65536 / int64_t(kBlockCols);

template <int kBits, int kPanels, class Tile>
void multiply(const PackedLayout& l, Panels<kPanels>& panels, Tile& tile) {
  using ThisBlock = Block<kBits, kPanels>;
  const auto group_blocks = int64_t(l.group / kBlockCols);
  const auto blocks = int64_t(l.blocks);
  for (int64_t b = 0; b < blocks;) {
    const int64_t g = b / group_blocks;
    const int64_t last = std::min({blocks, (g + 1) * group_blocks, b + kMostBlocks});
    for (; b < last; ++b) {
      // Behind a panel's end comes the one that is next for this pointer, kPanels further.
      constexpr int64_t kAheadBlocks = kAhead / (32 * kBits);
      const int64_t skip = b + kAheadBlocks < blocks ? 0 : (kPanels - 1) * int64_t(l.panel_bytes);
      for (const uint8_t* p : panels.codes) prefetch_lines<1>(p, kAhead + skip, 32 * kBits);
      tile.add_block(ThisBlock(panels.codes), b);
      for (const uint8_t*& p : panels.codes) p += 32 * kBits;
    }
    const auto offset = Lanes<kPanels>::all(ThisBlock::kOffset);
    tile.end_group(panels.scale(g), panels.zero(g) - offset);
  }
}

template <int kPanels, class Tile>
void multiply_five_levels(const PackedLayout& l, Panels<kPanels>& panels, Tile& tile) {
  const auto group_blocks = int64_t(l.group / kBlockCols);
  const auto blocks = int64_t((l.cols + kBlockCols - 1) / kBlockCols);
  FiveLevelBlock<kPanels> block;
  for (int64_t b = 0; b < blocks; ++b) {
    if (b % 3 == 0) {
      block.load(panels.codes);
      for (const uint8_t*& p : panels.codes) p += 32 * 7;
    }
    tile.add_block(block.third(b % 3), b);
    if ((b + 1) % group_blocks == 0 || b + 1 == blocks || (b + 1) % kMostBlocks == 0) {
      tile.end_group(panels.scale(b / group_blocks), panels.zero(b / group_blocks));
    }
  }
}

/// Panels [begin, end), kPanels at a time while there are as many; returns the first that is left.
/// kBits 0 stands for w2*. Tile<kPanels, kTokens> is made of the input and the first token.
template <template <int, int> class Tile, int kBits, int kPanels, int kTokens, class Input>
int64_t run(const PackedView& w, const Input& x, const float* weak_x, int64_t token, int64_t begin,
            int64_t end, MutableRows y) {
  weak_x += token * w.layout().packing.weak_columns;
  for (; begin + kPanels <= end; begin += kPanels) {
    Tile<kPanels, kTokens> tile(x, token);
    Panels<kPanels> panels(w, begin);
    if constexpr (kBits == 0) {
      multiply_five_levels(w.layout(), panels, tile);
    } else {
      multiply<kBits>(w.layout(), panels, tile);
    }
    Floats total[kPanels][kTokens];
    for (int m = 0; m < kTokens; ++m) {
      Floats own[kPanels];
      Lanes<kPanels>::split(tile.finish(m, begin), own);
      for (int p = 0; p < kPanels; ++p) total[p][m] = own[p];
    }
    for (int p = 0; p < kPanels; ++p) {
      add_weak<kTokens>(w, begin + p, weak_x, total[p]);
      for (int m = 0; m < kTokens; ++m) store_panel(w, begin + p, total[p][m], y.row(token + m));
    }
  }
  return begin;
}

/// kTokens tokens from `token` on.
template <template <int, int> class Tile, int kBits, int kTokens, class Input>
void run_all(const PackedView& w, const Input& x, const float* weak_x, int64_t token, int64_t begin,
             int64_t end, MutableRows y) {
  if constexpr (kTokens > 1 && kTilePanels > 1) {
    begin = run<Tile, kBits, kTilePanels, kTokens>(w, x, weak_x, token, begin, end, y);
  }
  run<Tile, kBits, 1, kTokens>(w, x, weak_x, token, begin, end, y);
}

/// All tokens, in tiles as large as there are registers for.
template <template <int, int> class Tile, class Input>
void run_tiles(const PackedView& w, const Input& x, const float* weak_x, int64_t tokens,
               int64_t begin, int64_t end, MutableRows y) {
  int64_t m = 0;
  const auto tiles_of = [&]<int kTokens>(std::integral_constant<int, kTokens>) {
    using Run = void (*)(const PackedView&, const Input&, const float*, int64_t, int64_t, int64_t,
                         MutableRows);
    constexpr Run kOfWidth[9] = {run_all<Tile, 0, kTokens, Input>, nullptr,
                                 run_all<Tile, 2, kTokens, Input>, run_all<Tile, 3, kTokens, Input>,
                                 run_all<Tile, 4, kTokens, Input>, run_all<Tile, 5, kTokens, Input>,
                                 run_all<Tile, 6, kTokens, Input>, run_all<Tile, 7, kTokens, Input>,
                                 run_all<Tile, 8, kTokens, Input>};
    const Packing& packing = w.layout().packing;
    const Run run = kOfWidth[packing.five_levels ? 0 : packing.bits];
    for (; m + kTokens <= tokens; m += kTokens) run(w, x, weak_x, m, begin, end, y);
  };
  if constexpr (kMostTokens >= 8) tiles_of(std::integral_constant<int, 8>());
  tiles_of(std::integral_constant<int, 4>());
  tiles_of(std::integral_constant<int, 2>());
  tiles_of(std::integral_constant<int, 1>());
}

}  // namespace oq::cpu::OQ_ISA
