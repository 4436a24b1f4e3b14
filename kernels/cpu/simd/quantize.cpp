/// Activations from fp32 to int8: in blocks of 16 columns for a16, on a scheme's grid below.
///
/// Regime: one row per token, a few thousand values that were just written. Work split: the caller
/// gives each thread whole rows. Bound: arithmetic, under 2 % of the linear that follows.

#include <algorithm>

#include "kernels/cpu/simd/simd.h"

namespace oq::cpu::OQ_ISA {
namespace {

/// 16 columns to int32 codes; returns their scale. NaN and Inf give any code and a NaN scale.
float quantize_columns(const float* x, Ints q[2]) {
  const Floats a = load_floats(x), b = load_floats(x + 8);
  const float top = max_lane(max(abs(a), abs(b)));
  const Floats poison = fmadd(a, Floats{}, b * Floats{});
  const Floats inv = all(top > 0 ? 127.0f / top : 0.0f);
  q[0] = nearest_ints(a * inv);
  q[1] = nearest_ints(b * inv);
  return top / 127.0f + sum_lanes(poison);
}

/// 32 values from x, of which `live` are there and `filler` stands for the others.
const float* padded(const float* x, int64_t live, float filler, float* buffer) {
  if (live >= int64_t(kBlockCols)) return x;
  for (int64_t k = 0; k < int64_t(kBlockCols); ++k) buffer[k] = k < live ? x[k] : filler;
  return buffer;
}

}  // namespace

void quantize_row(const float* x, int64_t n, int8_t* codes, float* scales, float* sums,
                  int64_t blocks) {
  for (int64_t b = 0; b < blocks; ++b) {
    alignas(32) float buffer[kBlockCols];
    const int64_t first = b * kBlockCols;
    const float* from = padded(x + first, n - first, 0.0f, buffer);
    Ints q[4];
    sums[b] = 0;
    for (int h = 0; h < 2; ++h) {
      const float scale = quantize_columns(from + h * kActCols, q + 2 * h);
      scales[2 * b + h] = scale;
      sums[b] += scale * sum_lanes(floats(add(q[2 * h], q[2 * h + 1])));
    }
    store_bytes(q, codes + b * kBlockCols);
  }
}

void range(const float* x, int64_t n, float* low, float* high) {
  const Floats first = all(x[0]);
  Floats least = first, most = first, poison = Floats{};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const Floats v = load_floats(x + i);
    least = min(least, v);
    most = max(most, v);
    poison = fmadd(v, Floats{}, poison);
  }
  float bottom = -max_lane(-least), top = max_lane(most);
  float bad = sum_lanes(poison);
  for (; i < n; ++i) {
    bottom = std::min(bottom, x[i]);
    top = std::max(top, x[i]);
    bad += x[i] * 0.0f;
  }
  *low = bottom + bad;
  *high = top + bad;
}

void quantize_row_to(const ActivationGrid& grid, const float* x, int64_t n, int8_t* codes,
                     int32_t* sums, int64_t blocks) {
  const Floats scale = all(grid.scale), zero = all(grid.zero);
  const Floats top = all(grid.top()), base = all(grid.base());
  const float filler = grid.scale * grid.shift();  // what code 0 stands for
  for (int64_t b = 0; b < blocks; ++b) {
    alignas(32) float buffer[kBlockCols];
    const int64_t first = b * kBlockCols;
    const float* from = padded(x + first, n - first, filler, buffer);
    Ints q[4], sum = {};
    for (int j = 0; j < 4; ++j) {
      const Floats r = nearest(load_floats(from + 8 * j) / scale);
      const Floats code = min(top, max(Floats{}, r + zero));
      q[j] = nearest_ints(code - base);
      sum = add(sum, q[j]);
    }
    store_bytes(q, codes + first);
    sums[b] = sum_lanes(sum);
  }
}

}  // namespace oq::cpu::OQ_ISA
