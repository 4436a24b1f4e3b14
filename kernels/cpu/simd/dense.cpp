/// Linears on plain f32, f16 and bf16 weights.
///
/// Regime: decode and prefill in tiles of 4 rows x 3 tokens: 12 accumulators, 3 activations and a
/// weight fill the 16 registers. Layout: rows one after another. Work split: the caller gives
/// rows. Every output has one accumulator of 8 lanes whatever the tile, so tiles do not change
/// results. Bound: memory at one token (16 bytes of f16 weights a cycle), FMA beyond.

#include <algorithm>
#include <cmath>

#include "kernels/cpu/simd/simd.h"

namespace oq::cpu::OQ_ISA {
namespace {

constexpr int kTileRows = 4;
constexpr int kTileTokens = 3;

template <class T, int kRows, int kTokens>
void tile(const DenseView& w, Rows x, int64_t row, int64_t token, MutableRows y) {
  const T* wp = static_cast<const T*>(w.data) + row * w.cols;
  Floats acc[kRows][kTokens];
#pragma GCC unroll 4
  for (auto& row_acc : acc) {
#pragma GCC unroll 4
    for (Floats& a : row_acc) a = Floats{};
  }
  const float* xp[kTokens];
  for (int m = 0; m < kTokens; ++m) xp[m] = x.row(token + m);
  int64_t k = 0;
  for (; k + 8 <= w.cols; k += 8) {
    Floats v[kTokens];
#pragma GCC unroll 4
    for (int m = 0; m < kTokens; ++m) v[m] = load_floats(xp[m] + k);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Floats weight = load_floats(wp + r * w.cols + k);
#pragma GCC unroll 4
      for (int m = 0; m < kTokens; ++m) acc[r][m] = fmadd(weight, v[m], acc[r][m]);
    }
  }
  float sums[kRows][kTokens];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int m = 0; m < kTokens; ++m) sums[r][m] = sum_lanes(acc[r][m]);
  }
  for (int r = 0; r < kRows; ++r) {
    for (int m = 0; m < kTokens; ++m) {
      float sum = sums[r][m];
      for (int64_t i = k; i < w.cols; ++i) {
        sum = std::fma(to_float(wp[r * w.cols + i]), xp[m][i], sum);
      }
      y.row(token + m)[row + r] = sum;
    }
  }
}

template <class T, int kRows>
void tokens_of(const DenseView& w, Rows x, int64_t tokens, int64_t row, MutableRows y) {
  int64_t m = 0;
  for (; m + kTileTokens <= tokens; m += kTileTokens) {
    tile<T, kRows, kTileTokens>(w, x, row, m, y);
  }
  for (; m < tokens; ++m) tile<T, kRows, 1>(w, x, row, m, y);
}

template <class T>
void dense_typed(const DenseView& w, Rows x, int64_t tokens, int64_t begin, int64_t end,
                 MutableRows y) {
  int64_t n = begin;
  for (; n + kTileRows <= end; n += kTileRows) tokens_of<T, kTileRows>(w, x, tokens, n, y);
  for (; n < end; ++n) tokens_of<T, 1>(w, x, tokens, n, y);
}

}  // namespace

void dense(const DenseView& w, Rows x, int64_t tokens, int64_t begin, int64_t end, MutableRows y) {
  with_elements(w, [&]<class T>(const T*) { dense_typed<T>(w, x, tokens, begin, end, y); });
}

}  // namespace oq::cpu::OQ_ISA
