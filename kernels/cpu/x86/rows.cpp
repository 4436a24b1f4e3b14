/// Norms and activations: what happens to a row between two linears.
///
/// Regime: a few thousand values that were just written, so the first level of cache holds them.
/// Work split: the caller gives each thread whole rows. Bound: arithmetic (an exponential costs
/// some 20 instructions per 8 values), under 1 % of a token next to its linears.

#include <algorithm>
#include <cmath>

#include "kernels/cpu/x86/simd.h"

namespace oq::cpu::OQ_ISA {
namespace {

/// x / (1 + e^-z): silu for z = x.
__m256 logistic(__m256 x, __m256 z) {
  const __m256 e = exp(_mm256_xor_ps(z, _mm256_set1_ps(-0.0f)));
  return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

__m256 silu(__m256 x) { return logistic(x, x); }

/// x (1 + tanh u) / 2 = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
__m256 gelu_tanh(__m256 x) {
  const __m256 cubic = _mm256_fmadd_ps(_mm256_mul_ps(x, x), _mm256_set1_ps(0.044715f * 1.5957691f),
                                       _mm256_set1_ps(1.5957691f));
  return logistic(x, _mm256_mul_ps(x, cubic));
}

/// The operands' order lets a NaN through.
__m256 relu(__m256 x) { return _mm256_max_ps(_mm256_setzero_ps(), x); }

/// max(x, 0) - |x| / 2 P(t) e^(-x^2 / 2), t = 1 / (1 + p |x| / sqrt 2): erf by Abramowitz and
/// Stegun 7.1.26, whose error is below 1.5e-7, in the form that does not cancel for negative x.
__m256 gelu(__m256 x) {
  const __m256 size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
  const __m256 one = _mm256_set1_ps(1.0f);
  const __m256 t =
      _mm256_div_ps(one, _mm256_fmadd_ps(size, _mm256_set1_ps(0.3275911f * 0.70710678f), one));
  __m256 p = _mm256_set1_ps(1.061405429f);
  for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) {
    p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(c));
  }
  const __m256 e = exp(_mm256_mul_ps(_mm256_mul_ps(x, x), _mm256_set1_ps(-0.5f)));
  const __m256 tail = _mm256_mul_ps(_mm256_mul_ps(p, t), _mm256_mul_ps(e, size));
  return _mm256_fnmadd_ps(_mm256_set1_ps(0.5f), tail, relu(x));
}

/// Ones in the first `n` lanes.
__m256i first_lanes(int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(n)), lane);
}

template <class F>
void apply(F f, const float* gate, const float* up, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += 8) {
    const __m256i lanes = first_lanes(std::min<int64_t>(8, n - i));
    __m256 v = f(_mm256_maskload_ps(gate + i, lanes));
    if (up != nullptr) v = _mm256_mul_ps(v, _mm256_maskload_ps(up + i, lanes));
    _mm256_maskstore_ps(y + i, lanes, v);
  }
}

}  // namespace

void activate(Activation activation, const float* gate, const float* up, int64_t n, float* y) {
  switch (activation) {
    case Activation::silu:
      return apply(silu, gate, up, n, y);
    case Activation::gelu:
      return apply(gelu, gate, up, n, y);
    case Activation::gelu_tanh:
      return apply(gelu_tanh, gate, up, n, y);
    case Activation::relu:
      return apply(relu, gate, up, n, y);
  }
}

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y) {
  __m256 acc = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    acc = _mm256_fmadd_ps(v, v, acc);
  }
  float sum = sum_lanes(acc);
  for (; i < n; ++i) sum = std::fma(x[i], x[i], sum);
  const float inv = 1.0f / std::sqrt(sum / float(n) + eps);
  for (i = 0; i < n; ++i) y[i] = x[i] * inv * weight[i];
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n,
                float* y) {
  __m256 acc = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) acc = _mm256_add_ps(acc, _mm256_loadu_ps(x + i));
  float mean = sum_lanes(acc);
  for (; i < n; ++i) mean += x[i];
  mean /= float(n);
  acc = _mm256_setzero_ps();
  for (i = 0; i + 8 <= n; i += 8) {
    const __m256 d = _mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(mean));
    acc = _mm256_fmadd_ps(d, d, acc);
  }
  float variance = sum_lanes(acc);
  for (; i < n; ++i) variance = std::fma(x[i] - mean, x[i] - mean, variance);
  const float inv = 1.0f / std::sqrt(variance / float(n) + eps);
  for (i = 0; i < n; ++i) y[i] = (x[i] - mean) * inv * weight[i] + bias[i];
}

}  // namespace oq::cpu::OQ_ISA
