#include "tools/calibrate/learn/ops.h"

#include <cmath>
#include <numbers>

#include "tools/calibrate/learn/vector_math.h"

namespace oq::calibrate {
namespace {

/// With h = (x - mean) inv and g = dy weight:
///   LayerNorm  dx = inv (g - mean(g) - h mean(g h))
///   RMSNorm    the same with mean = 0 and without mean(g)
struct Row {
  float mean, inv;

  Row(const NormBackward& norm, const float* x) {
    const auto n = float(norm.n);
    mean = norm.rms ? 0.0f : lane_sum(norm.n, [&](int64_t i) { return x[i]; }) / n;
    const float squares =
        lane_sum(norm.n, [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); });
    inv = 1.0f / std::sqrt(squares / n + norm.eps);
  }
};

void row_backward(const NormBackward& norm, const Row& r, const float* x, const float* dy,
                  float* dx) {
  const float* w = norm.weight;
  const auto n = float(norm.n);
  const float along =
      lane_sum(norm.n, [&](int64_t i) { return dy[i] * w[i] * (x[i] - r.mean); }) * r.inv / n;
  const float level =
      norm.rms ? 0.0f : lane_sum(norm.n, [&](int64_t i) { return dy[i] * w[i]; }) / n;
  for (int64_t i = 0; i < norm.n; ++i) {
    dx[i] += r.inv * (dy[i] * w[i] - level - (x[i] - r.mean) * r.inv * along);
  }
}

struct Slope {
  float value, gradient;
};

/// Value and gradient of an activation.
Slope slope(Activation activation, float x) {
  switch (activation) {
    case Activation::relu:
      return {x > 0 ? x : 0.0f, x > 0 ? 1.0f : 0.0f};
    case Activation::gelu: {
      const float phi = 0.5f * (1 + std::erf(x * float(1 / std::numbers::sqrt2)));
      const float density = fast_exp(-0.5f * x * x) * 0.398942280f;
      return {x * phi, phi + x * density};
    }
    case Activation::gelu_tanh: {
      constexpr float kA = 0.797884561f, kB = 0.044715f;               // sqrt(2 / pi)
      const float t = 2 * sigmoid(2 * kA * (x + kB * x * x * x)) - 1;  // tanh
      const float inner = kA * (1 + 3 * kB * x * x);
      return {0.5f * x * (1 + t), 0.5f * (1 + t) + 0.5f * x * (1 - t * t) * inner};
    }
    case Activation::silu:
      break;
  }
  const float s = sigmoid(x);
  return {x * s, s * (1 + x * (1 - s))};
}

template <Activation A>
void backward_of(const float* gate, const float* up, int64_t n, float* d, float* d_gate) {
  if (up == nullptr) {
    for (int64_t i = 0; i < n; ++i) d_gate[i] = d[i] * slope(A, gate[i]).gradient;
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const Slope s = slope(A, gate[i]);
    d_gate[i] = d[i] * up[i] * s.gradient;
    d[i] *= s.value;
  }
}

}  // namespace

void NormBackward::run(ThreadPool& pool, const float* x, const float* dy, int64_t tokens,
                       float* dx) const {
  pool.parallel_for(tokens, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      row_backward(*this, Row(*this, x + t * n), x + t * n, dy + t * n, dx + t * n);
    }
  });
  if (d_weight == nullptr) return;
  for (int64_t t = 0; t < tokens; ++t) {  // in order of tokens, whatever the threads
    const Row r(*this, x + t * n);
    const float *row = x + t * n, *d = dy + t * n;
    for (int64_t i = 0; i < n; ++i) d_weight[i] += d[i] * (row[i] - r.mean) * r.inv;
    for (int64_t i = 0; d_bias != nullptr && i < n; ++i) d_bias[i] += d[i];
  }
}

Rope::Rope(std::span<const float> inv_freq, double factor, int64_t tokens)
    : half_(int64_t(inv_freq.size())) {
  for (int64_t t = 0; t < tokens; ++t) {
    for (float f : inv_freq) {
      const double angle = double(t) * double(f);
      cos_.push_back(float(std::cos(angle) * factor));
      sin_.push_back(float(std::sin(angle) * factor));
    }
  }
}

void Rope::rotate(ThreadPool& pool, float* x, int64_t tokens, int64_t heads, int64_t head_dim,
                  int64_t stride) const {
  run(pool, x, tokens, heads, head_dim, stride, 1);
}

void Rope::rotate_back(ThreadPool& pool, float* d, int64_t tokens, int64_t heads, int64_t head_dim,
                       int64_t stride) const {
  run(pool, d, tokens, heads, head_dim, stride, -1);
}

void Rope::run(ThreadPool& pool, float* x, int64_t tokens, int64_t heads, int64_t head_dim,
               int64_t stride, float sign) const {
  if (half_ == 0) return;
  pool.parallel_for(tokens, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const float *c = cos_.data() + t * half_, *s = sin_.data() + t * half_;
      for (int64_t h = 0; h < heads; ++h) {
        float* head = x + t * stride + h * head_dim;
        for (int64_t i = 0; i < half_; ++i) {
          const float a = head[i], b = head[i + half_];
          head[i] = a * c[i] - sign * b * s[i];
          head[i + half_] = b * c[i] + sign * a * s[i];
        }
      }
    }
  });
}

void activate_backward(Activation activation, const float* gate, const float* up, int64_t n,
                       float* d, float* d_gate) {
  switch (activation) {
    case Activation::silu:
      return backward_of<Activation::silu>(gate, up, n, d, d_gate);
    case Activation::gelu:
      return backward_of<Activation::gelu>(gate, up, n, d, d_gate);
    case Activation::gelu_tanh:
      return backward_of<Activation::gelu_tanh>(gate, up, n, d, d_gate);
    case Activation::relu:
      return backward_of<Activation::relu>(gate, up, n, d, d_gate);
  }
}

}  // namespace oq::calibrate
