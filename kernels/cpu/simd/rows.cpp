/// Norms and activations: what happens to a row between two linears.
///
/// Regime: a few thousand values that were just written, so the first level of cache holds them.
/// Work split: the caller gives each thread whole rows. Bound: arithmetic (an exponential costs
/// some 20 instructions per 8 values), under 1 % of a token next to its linears.

#include <algorithm>
#include <cmath>

#include "kernels/cpu/simd/simd.h"

namespace oq::cpu::OQ_ISA {
namespace {

/// x / (1 + e^-z): silu for z = x.
Floats logistic(Floats x, Floats z) {
  const Floats e = exp(-z);
  return x / (all(1.0f) + e);
}

Floats silu(Floats x) { return logistic(x, x); }

/// x (1 + tanh u) / 2 = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
Floats gelu_tanh(Floats x) {
  const Floats cubic = fmadd(x * x, all(0.044715f * 1.5957691f), all(1.5957691f));
  return logistic(x, x * cubic);
}

/// The operands' order lets a NaN through.
Floats relu(Floats x) { return max(Floats{}, x); }

/// max(x, 0) - |x| / 2 P(t) e^(-x^2 / 2), t = 1 / (1 + p |x| / sqrt 2): erf by Abramowitz and
/// Stegun 7.1.26, whose error is below 1.5e-7, in the form that does not cancel for negative x.
Floats gelu(Floats x) {
  const Floats size = abs(x);
  const Floats one = all(1.0f);
  const Floats t = one / fmadd(size, all(0.3275911f * 0.70710678f), one);
  Floats p = all(1.061405429f);
  for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) {
    p = fmadd(p, t, all(c));
  }
  const Floats e = exp(x * x * all(-0.5f));
  const Floats tail = (p * t) * (e * size);
  return fnmadd(all(0.5f), tail, relu(x));
}

template <class F>
void apply(F f, const float* gate, const float* up, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += 8) {
    const int64_t live = std::min<int64_t>(8, n - i);
    Floats v = f(load_first(gate + i, live));
    if (up != nullptr) v = v * load_first(up + i, live);
    store_first(y + i, live, v);
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
  Floats acc = Floats{};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const Floats v = load_floats(x + i);
    acc = fmadd(v, v, acc);
  }
  float sum = sum_lanes(acc);
  for (; i < n; ++i) sum = std::fma(x[i], x[i], sum);
  const float inv = 1.0f / std::sqrt(sum / float(n) + eps);
  for (i = 0; i < n; ++i) y[i] = x[i] * inv * weight[i];
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n,
                float* y) {
  Floats acc = Floats{};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) acc = acc + load_floats(x + i);
  float mean = sum_lanes(acc);
  for (; i < n; ++i) mean += x[i];
  mean /= float(n);
  acc = Floats{};
  for (i = 0; i + 8 <= n; i += 8) {
    const Floats d = load_floats(x + i) - all(mean);
    acc = fmadd(d, d, acc);
  }
  float variance = sum_lanes(acc);
  for (; i < n; ++i) variance = std::fma(x[i] - mean, x[i] - mean, variance);
  const float inv = 1.0f / std::sqrt(variance / float(n) + eps);
  for (i = 0; i < n; ++i) y[i] = (x[i] - mean) * inv * weight[i] + bias[i];
}

}  // namespace oq::cpu::OQ_ISA
