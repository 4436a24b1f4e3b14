/// Packed linears with int8 activations.
///
/// Regime: decode (1 token) and prefill (tiles of tokens). Layout: panels of 8 rows, column blocks
/// of 32 (SPEC.md). Work split: the caller gives panels; a panel is read once per tile of tokens,
/// front to back. A lane is a row, so no horizontal sums; activations are broadcast four at a time
/// and multiplied by `maddubs` (AVX2) or `vpdpbusd` (AVX-512). Half a block shares an activation
/// scale. With AVX-512 a tile goes through two panels at once, in the halves of 512-bit vectors: as
/// many multiplications a cycle as with 256 bits on Zen 4, but half the instructions to keep in
/// flight. One token takes one panel: two are two streams of 8 KiB each, which memory serves at
/// half the speed. Bound: memory at one token, multiplications beyond. Measured: docs/kernels.md.
/// Lost there: plain rows with one dot product each, 16-row panels, two 256-bit panels at once.

#include <algorithm>

#include "kernels/cpu/x86/dot.h"

namespace oq::cpu::OQ_ISA {
namespace {

/// kTokens tokens on their way through kPanels panels.
template <int kPanels, int kTokens>
class Tile {
 public:
  using L = Lanes<kPanels>;
  using Floats = typename L::Floats;

  Tile(const Int8Rows& x, int64_t first) {
    for (int m = 0; m < kTokens; ++m) {
      codes_[m] = x.row_codes(first + m);
      scales_[m] = x.row_scales(first + m);
      sums_[m] = x.row_sums(first + m);
      total[m] = group_[m] = L::zero();
      group_sum_[m] = 0;
    }
  }

  template <class AnyBlock>
  inline __attribute__((always_inline)) void add_block(const AnyBlock& block, int64_t index) {
#pragma GCC unroll 8
    for (int m = 0; m < kTokens; ++m) {
      typename L::Ints sum[2];
      block.dots(codes_[m] + index * kBlockCols, sum);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const Floats scale = L::all(scales_[m][2 * index + half]);
        group_[m] = L::fmadd(L::floats(sum[half]), scale, group_[m]);
      }
      group_sum_[m] += sums_[m][index];
    }
  }

  /// total += scale * (sum of code * x - zero * sum of x)
  void end_group(Floats scale, Floats zero) {
#pragma GCC unroll 8
    for (int m = 0; m < kTokens; ++m) {
      const Floats live = L::fnmadd(zero, L::all(group_sum_[m]), group_[m]);
      total[m] = L::fmadd(scale, live, total[m]);
      group_[m] = L::zero();
      group_sum_[m] = 0;
    }
  }

  Floats total[kTokens];

 private:
  const int8_t* codes_[kTokens];
  const float* scales_[kTokens];
  const float* sums_[kTokens];
  Floats group_[kTokens];
  float group_sum_[kTokens];
};

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
    }
  }
  typename L::Floats scale(int64_t group) const {
    __m256 own[kPanels];
    for (int p = 0; p < kPanels; ++p) own[p] = load_floats(scales_[p] + group * kPanelRows);
    return L::join(own);
  }
  typename L::Floats zero(int64_t group) const {
    __m256 own[kPanels];
    for (int p = 0; p < kPanels; ++p) own[p] = zeros_(first_ + p, group);
    return L::join(own);
  }

  const uint8_t* codes[kPanels];

 private:
  ZeroReader zeros_;
  int64_t first_;
  const f16* scales_[kPanels];
};

template <int kBits, int kPanels, int kTokens>
void multiply(const PackedLayout& l, Panels<kPanels>& panels, Tile<kPanels, kTokens>& tile) {
  const auto group_blocks = int64_t(l.group / kBlockCols);
  const auto blocks = int64_t(l.blocks);
  for (int64_t g = 0, b = 0; b < blocks; ++g) {
    const int64_t last = std::min(blocks, b + group_blocks);
    for (; b < last; ++b) {
      // Behind a panel's end comes the one that is next for this pointer, kPanels further.
      constexpr int64_t kAheadBlocks = kAhead / (32 * kBits);
      const int64_t skip = b + kAheadBlocks < blocks ? 0 : (kPanels - 1) * int64_t(l.panel_bytes);
      for (const uint8_t* p : panels.codes)
        prefetch_lines<_MM_HINT_T0>(p, kAhead + skip, 32 * kBits);
      tile.add_block(Block<kBits, kPanels>(panels.codes), b);
      for (const uint8_t*& p : panels.codes) p += 32 * kBits;
    }
    tile.end_group(panels.scale(g), panels.zero(g));
  }
}

template <int kPanels, int kTokens>
void multiply_five_levels(const PackedLayout& l, Panels<kPanels>& panels,
                          Tile<kPanels, kTokens>& tile) {
  const auto group_blocks = int64_t(l.group / kBlockCols);
  const auto blocks = int64_t((l.cols + kBlockCols - 1) / kBlockCols);
  FiveLevelBlock<kPanels> block;
  for (int64_t b = 0; b < blocks; ++b) {
    if (b % 3 == 0) {
      block.load(panels.codes);
      for (const uint8_t*& p : panels.codes) p += 32 * 7;
    }
    tile.add_block(block.third(b % 3), b);
    if ((b + 1) % group_blocks == 0 || b + 1 == blocks) {
      tile.end_group(panels.scale(b / group_blocks), panels.zero(b / group_blocks));
    }
  }
}

/// Panels [begin, end), kPanels at a time while there are as many; returns the first that is left.
/// kBits 0 stands for w2*.
template <int kBits, int kPanels, int kTokens>
int64_t run(const PackedView& w, const Int8Rows& x, const float* weak_x, int64_t token,
            int64_t begin, int64_t end, MutableRows y) {
  weak_x += token * w.layout().packing.weak_columns;
  for (; begin + kPanels <= end; begin += kPanels) {
    Tile<kPanels, kTokens> tile(x, token);
    Panels<kPanels> panels(w, begin);
    if constexpr (kBits == 0) {
      multiply_five_levels(w.layout(), panels, tile);
    } else {
      multiply<kBits>(w.layout(), panels, tile);
    }
    __m256 total[kPanels][kTokens];
    for (int m = 0; m < kTokens; ++m) {
      __m256 own[kPanels];
      Lanes<kPanels>::split(tile.total[m], own);
      for (int p = 0; p < kPanels; ++p) total[p][m] = own[p];
    }
    for (int p = 0; p < kPanels; ++p) {
      add_weak<kTokens>(w, begin + p, weak_x, total[p]);
      for (int m = 0; m < kTokens; ++m) store_panel(w, begin + p, total[p][m], y.row(token + m));
    }
  }
  return begin;
}

using RunFn = void (*)(const PackedView&, const Int8Rows&, const float* weak_x, int64_t token,
                       int64_t begin, int64_t end, MutableRows);

template <int kBits, int kTokens>
void run_all(const PackedView& w, const Int8Rows& x, const float* weak_x, int64_t token,
             int64_t begin, int64_t end, MutableRows y) {
#if defined(__AVX512VNNI__)
  if constexpr (kTokens > 1) begin = run<kBits, 2, kTokens>(w, x, weak_x, token, begin, end, y);
#endif
  run<kBits, 1, kTokens>(w, x, weak_x, token, begin, end, y);
}

template <int kTokens>
constexpr RunFn kRun[9] = {run_all<0, kTokens>, nullptr,
                           run_all<2, kTokens>, run_all<3, kTokens>,
                           run_all<4, kTokens>, run_all<5, kTokens>,
                           run_all<6, kTokens>, run_all<7, kTokens>,
                           run_all<8, kTokens>};

}  // namespace

void packed_int8(const PackedView& w, const Int8Rows& x, const float* weak_x, int64_t tokens,
                 int64_t begin, int64_t end, MutableRows y) {
  const Packing& packing = w.layout().packing;
  const int row = packing.five_levels ? 0 : packing.bits;
  int64_t m = 0;
#if defined(__AVX512VNNI__)  // of 32 registers, 8 hold codes and 8 the sums of 8 tokens
  for (; m + 8 <= tokens; m += 8) kRun<8>[row](w, x, weak_x, m, begin, end, y);
#endif
  for (; m + 4 <= tokens; m += 4) kRun<4>[row](w, x, weak_x, m, begin, end, y);
  for (; m + 2 <= tokens; m += 2) kRun<2>[row](w, x, weak_x, m, begin, end, y);
  for (; m < tokens; ++m) kRun<1>[row](w, x, weak_x, m, begin, end, y);
}

}  // namespace oq::cpu::OQ_ISA
