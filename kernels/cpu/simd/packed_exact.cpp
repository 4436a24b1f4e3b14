/// Packed linears with fp32 activations: the arithmetic of `--exact`.
///
/// Regime: any number of tokens, in tiles of 4. Layout and work split as in packed_int8.cpp. Each
/// code becomes float(code - zero) and meets its activation in one FMA, columns in ascending
/// order, so that the only difference from the scalar kernel is FMA's single rounding. Bound:
/// instructions, about 5 per 8 weights and tile.

#include "kernels/cpu/simd/unpack.h"

namespace oq::cpu::OQ_ISA {
namespace {

constexpr int kTile = 4;

template <int kTokens>
struct Tile {
  const float* x[kTokens];
  Floats group[kTokens];
  Floats total[kTokens];

  Tile(Rows rows, int64_t first) {
    for (int m = 0; m < kTokens; ++m) {
      x[m] = rows.row(first + m);
      group[m] = total[m] = Floats{};
    }
  }

  /// 32 columns from column k on.
  void add(const Bytes codes[kCodeVectors], int64_t k, Floats zero) {
    for (int d = 0; d < kCodeVectors; ++d) {
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        const Floats live = column(codes[d], c) - zero;
#pragma GCC unroll 4
        for (int m = 0; m < kTokens; ++m) {
          group[m] = fmadd(live, all(x[m][k + 4 * d + c]), group[m]);
        }
      }
    }
  }

  void end_group(Floats scale) {
    for (int m = 0; m < kTokens; ++m) {
      total[m] = fmadd(scale, group[m], total[m]);
      group[m] = Floats{};
    }
  }
};

template <int kBits>
void unpack_block(const PackedView& w, int64_t p, int64_t b, Bytes codes[]) {
  const uint8_t* panel = w.codes(uint64_t(p));
  if constexpr (kBits == 0) {
    if (b % 3 == 0) unpack_five_levels(panel + b / 3 * 7 * 32, codes);
  } else {
    unpack_fields<kBits>(panel + b * kBits * 32, codes);
  }
}

/// kBits 0 stands for w2*.
template <int kBits, int kTokens>
void panels(const PackedView& w, Rows x, const float* weak_x, int64_t first_token, int64_t begin,
            int64_t end, MutableRows y) {
  const PackedLayout& l = w.layout();
  const auto blocks = int64_t((l.cols + kBlockCols - 1) / kBlockCols);
  const auto group_blocks = int64_t(l.group / kBlockCols);
  Bytes codes[(kBits == 0 ? 3 : 1) * kCodeVectors];
  const ZeroReader zeros(w);
  for (int64_t p = begin; p < end; ++p) {
    Tile<kTokens> tile(x, first_token);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t g = b / group_blocks;
      unpack_block<kBits>(w, p, b, codes);
      tile.add(codes + (kBits == 0 ? b % 3 * kCodeVectors : 0), b * kBlockCols, zeros(p, g));
      if ((b + 1) % group_blocks == 0 || b + 1 == blocks) {
        tile.end_group(load_floats(w.scales(uint64_t(p)) + g * kPanelRows));
      }
    }
    add_weak<kTokens>(w, p, weak_x + first_token * l.packing.weak_columns, tile.total);
    for (int m = 0; m < kTokens; ++m) store_panel(w, p, tile.total[m], y.row(first_token + m));
  }
}

using PanelsFn = void (*)(const PackedView&, Rows, const float*, int64_t first_token, int64_t begin,
                          int64_t end, MutableRows);

template <int kTokens>
constexpr PanelsFn kPanels[9] = {panels<0, kTokens>, nullptr,
                                 panels<2, kTokens>, panels<3, kTokens>,
                                 panels<4, kTokens>, panels<5, kTokens>,
                                 panels<6, kTokens>, panels<7, kTokens>,
                                 panels<8, kTokens>};

}  // namespace

void packed_exact(const PackedView& w, Rows x, const float* weak_x, int64_t tokens, int64_t begin,
                  int64_t end, MutableRows y) {
  const Packing& packing = w.layout().packing;
  const int row = packing.five_levels ? 0 : packing.bits;
  int64_t m = 0;
  for (; m + kTile <= tokens; m += kTile) kPanels<kTile>[row](w, x, weak_x, m, begin, end, y);
  for (; m < tokens; ++m) kPanels<1>[row](w, x, weak_x, m, begin, end, y);
}

}  // namespace oq::cpu::OQ_ISA
