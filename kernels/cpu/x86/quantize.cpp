/// Activations from fp32 to int8: in blocks of 16 columns for a16, on a scheme's grid below.
///
/// Regime: one row per token, a few thousand values that were just written. Work split: the caller
/// gives each thread whole rows. Bound: arithmetic, under 2 % of the linear that follows.

#include <algorithm>

#include "kernels/cpu/x86/simd.h"

namespace oq::cpu::OQ_ISA {
namespace {

float max_lane(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  m = _mm_max_ss(m, _mm_movehdup_ps(m));
  return _mm_cvtss_f32(m);
}

int32_t sum_ints(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

/// 16 columns to int32 codes; returns their scale. NaN and Inf give any code and a NaN scale.
float quantize_columns(const float* x, __m256i q[2]) {
  const __m256 sign = _mm256_set1_ps(-0.0f), zero = _mm256_setzero_ps();
  const __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + 8);
  const float top = max_lane(_mm256_max_ps(_mm256_andnot_ps(sign, a), _mm256_andnot_ps(sign, b)));
  const __m256 poison = _mm256_fmadd_ps(a, zero, _mm256_mul_ps(b, zero));
  const __m256 inv = _mm256_set1_ps(top > 0 ? 127.0f / top : 0.0f);
  q[0] = _mm256_cvtps_epi32(_mm256_mul_ps(a, inv));
  q[1] = _mm256_cvtps_epi32(_mm256_mul_ps(b, inv));
  return top / 127.0f + sum_lanes(poison);
}

/// 32 int32 codes, in four vectors, as bytes.
void store_codes(const __m256i q[4], int8_t* codes) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i packed =
      _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes),
                      _mm256_permutevar8x32_epi32(packed, order));
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
    __m256i q[4];
    sums[b] = 0;
    for (int h = 0; h < 2; ++h) {
      const float scale = quantize_columns(from + h * kActCols, q + 2 * h);
      scales[2 * b + h] = scale;
      sums[b] += scale * sum_lanes(_mm256_cvtepi32_ps(_mm256_add_epi32(q[2 * h], q[2 * h + 1])));
    }
    store_codes(q, codes + b * kBlockCols);
  }
}

void range(const float* x, int64_t n, float* low, float* high) {
  const __m256 first = _mm256_set1_ps(x[0]);
  __m256 least = first, most = first, poison = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    least = _mm256_min_ps(least, v);
    most = _mm256_max_ps(most, v);
    poison = _mm256_fmadd_ps(v, _mm256_setzero_ps(), poison);
  }
  const __m256 sign = _mm256_set1_ps(-0.0f);
  float bottom = -max_lane(_mm256_xor_ps(least, sign)), top = max_lane(most);
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
  const __m256 scale = _mm256_set1_ps(grid.scale), zero = _mm256_set1_ps(grid.zero);
  const __m256 top = _mm256_set1_ps(grid.top()), base = _mm256_set1_ps(grid.base());
  const float filler = grid.scale * grid.shift();  // what code 0 stands for
  for (int64_t b = 0; b < blocks; ++b) {
    alignas(32) float buffer[kBlockCols];
    const int64_t first = b * kBlockCols;
    const float* from = padded(x + first, n - first, filler, buffer);
    __m256i q[4], sum = _mm256_setzero_si256();
    for (int j = 0; j < 4; ++j) {
      const __m256 r = _mm256_round_ps(_mm256_div_ps(_mm256_loadu_ps(from + 8 * j), scale),
                                       _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      const __m256 code =
          _mm256_min_ps(top, _mm256_max_ps(_mm256_setzero_ps(), _mm256_add_ps(r, zero)));
      q[j] = _mm256_cvtps_epi32(_mm256_sub_ps(code, base));
      sum = _mm256_add_epi32(sum, q[j]);
    }
    store_codes(q, codes + first);
    sums[b] = sum_ints(sum);
  }
}

}  // namespace oq::cpu::OQ_ISA
