#include "kernels/reference/ops.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/activation_grid.h"
#include "kernels/kv_grid.h"

namespace oq::reference {

void linear(std::span<const float> w, std::span<const float> bias, std::span<const float> x,
            int64_t tokens, int64_t rows, int64_t cols, std::span<float> y) {
  for (int64_t m = 0; m < tokens; ++m) {
    for (int64_t n = 0; n < rows; ++n) {
      double sum = bias.empty() ? 0.0 : double(bias[size_t(n)]);
      for (int64_t k = 0; k < cols; ++k) {
        sum += double(w[size_t(n * cols + k)]) * double(x[size_t(m * cols + k)]);
      }
      y[size_t(m * rows + n)] = float(sum);
    }
  }
}

std::vector<float> dequantize(const PackedView& view) {
  const auto& l = view.layout();
  std::vector<float> w(l.rows * l.cols);
  for (uint64_t r = 0; r < l.rows; ++r) {
    view.dequantize_row(r, std::span(w).subspan(r * l.cols, l.cols));
  }
  return w;
}

void rms_norm(std::span<const float> x, std::span<const float> weight, double eps,
              std::span<float> y) {
  double sum = 0;
  for (float v : x) sum += double(v) * double(v);
  const double inv = 1.0 / std::sqrt(sum / double(x.size()) + eps);
  for (size_t i = 0; i < x.size(); ++i) y[i] = float(double(x[i]) * inv * double(weight[i]));
}

void layer_norm(std::span<const float> x, std::span<const float> weight,
                std::span<const float> bias, double eps, std::span<float> y) {
  double mean = 0, variance = 0;
  for (float v : x) mean += double(v);
  mean /= double(x.size());
  for (float v : x) variance += (double(v) - mean) * (double(v) - mean);
  const double inv = 1.0 / std::sqrt(variance / double(x.size()) + eps);
  for (size_t i = 0; i < x.size(); ++i) {
    y[i] = float((double(x[i]) - mean) * inv * double(weight[i]) + double(bias[i]));
  }
}

void rope(std::span<float> head, std::span<const float> inv_freq, int64_t position, double factor) {
  const size_t half = inv_freq.size();
  for (size_t i = 0; i < half; ++i) {
    const double angle = double(position) * double(inv_freq[i]);
    const double c = std::cos(angle) * factor, s = std::sin(angle) * factor;
    const double a = head[i], b = head[i + half];
    head[i] = float(a * c - b * s);
    head[i + half] = float(b * c + a * s);
  }
}

void attention(std::span<const float> q, std::span<const float> k, std::span<const float> v,
               std::span<const float> bias, int64_t positions, std::span<float> out) {
  const size_t dim = q.size();
  std::vector<double> p(static_cast<size_t>(positions));
  double top = -INFINITY;
  for (size_t t = 0; t < p.size(); ++t) {
    double dot = 0;
    for (size_t d = 0; d < dim; ++d) dot += double(q[d]) * double(k[t * dim + d]);
    p[t] = dot / std::sqrt(double(dim)) + (bias.empty() ? 0.0 : double(bias[t]));
    top = std::max(top, p[t]);
  }
  double sum = 0;
  for (double& s : p) sum += s = std::exp(s - top);
  for (size_t d = 0; d < dim; ++d) {
    double o = 0;
    for (size_t t = 0; t < p.size(); ++t) o += p[t] * double(v[t * dim + d]);
    out[d] = float(o / sum);
  }
}

std::vector<Choice> route(std::span<const float> logits, int64_t used) {
  std::vector<Choice> chosen;
  for (int64_t e = 0; e < int64_t(logits.size()); ++e) {
    const float logit = logits[size_t(e)];
    chosen.push_back({e, std::isnan(logit) ? -INFINITY : logit});
  }
  std::stable_sort(chosen.begin(), chosen.end(),
                   [](const Choice& a, const Choice& b) { return a.weight > b.weight; });
  chosen.resize(size_t(used));
  const double top = chosen.front().weight;
  double sum = 0;
  for (const Choice& c : chosen) sum += std::exp(double(c.weight) - top);
  for (Choice& c : chosen) c.weight = float(std::exp(double(c.weight) - top) / sum);
  std::sort(chosen.begin(), chosen.end(),
            [](const Choice& a, const Choice& b) { return a.expert < b.expert; });
  return chosen;
}

float silu(float x) { return float(double(x) / (1.0 + std::exp(-double(x)))); }

float gelu(float x) {
  return float(0.5 * double(x) * (1.0 + std::erf(double(x) / std::numbers::sqrt2)));
}

float gelu_tanh(float x) {
  const double v = x;
  const double inner = std::sqrt(2.0 / std::numbers::pi) * (v + 0.044715 * v * v * v);
  return float(0.5 * v * (1.0 + std::tanh(inner)));
}

float relu(float x) { return std::max(x, 0.0f); }

void fake_quantize(std::span<float> x, int bits) {
  if (x.empty()) return;
  const auto [low, high] = std::minmax_element(x.begin(), x.end());
  const ActivationGrid grid = ActivationGrid::of(*low, *high, bits);
  for (float& v : x) v = grid.scale * (grid.code(v) - grid.zero);
}

void fake_quantize_kv(std::span<float> x, int bits) {
  const KvGrid grid = KvGrid::of(x, bits);
  for (float& v : x) v = grid.value(grid.code(v));
}

}  // namespace oq::reference
