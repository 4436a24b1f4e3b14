#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "format/packed.h"

/// The plain, slow truth of every op: fp32 in and out, double in between, one loop per sum sign.
/// Everything fast is held to these by tests/kernels. No threads, no state, no model.
namespace oq::reference {

/// y[m][n] = sum_k w[n][k] x[m][k] (+ bias[n]).
void linear(std::span<const float> w,     // [rows][cols]
            std::span<const float> bias,  // [rows] or empty
            std::span<const float> x,     // [tokens][cols]
            int64_t tokens, int64_t rows, int64_t cols,
            std::span<float> y);  // [tokens][rows]

/// The weights of a packed tensor, [rows][cols].
std::vector<float> dequantize(const PackedView& view);

/// y = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, eq. 4).
void rms_norm(std::span<const float> x, std::span<const float> weight, double eps,
              std::span<float> y);

/// y = (x - mean) / sqrt(variance + eps) * weight + bias (Ba et al. 2016, eq. 4).
void layer_norm(std::span<const float> x, std::span<const float> weight,
                std::span<const float> bias, double eps, std::span<float> y);

/// Rotates pairs (i, i + rope_dim / 2) of one head by position * inv_freq[i] (Su et al. 2021, in
/// the half-split form); `factor` multiplies cos and sin.
void rope(std::span<float> head, std::span<const float> inv_freq, int64_t position, double factor);

/// One query over `positions` keys and values: softmax(q k / sqrt(head_dim) + bias) v.
void attention(std::span<const float> q,     // [head_dim]
               std::span<const float> k,     // [positions][head_dim]
               std::span<const float> v,     // [positions][head_dim]
               std::span<const float> bias,  // [positions] or empty
               int64_t positions, std::span<float> out);

/// The `used` largest of a router's logits, in ascending order of expert, with the softmax over
/// just them (Jiang et al. 2024, section 2.1). Of equal logits the first wins; NaNs lose.
struct Choice {
  int64_t expert;
  float weight;
};
std::vector<Choice> route(std::span<const float> logits, int64_t used);

float silu(float x);       ///< x / (1 + e^-x)
float gelu(float x);       ///< x Phi(x), exact
float gelu_tanh(float x);  ///< its tanh approximation (Hendrycks and Gimpel 2016)
float relu(float x);

/// Quantizes by the ActivationGrid of the whole span, and back. In place.
void fake_quantize(std::span<float> x, int bits);
/// The same by KvGrid: keys or values of one token and KV head as a cache of codes holds them.
void fake_quantize_kv(std::span<float> x, int bits);

}  // namespace oq::reference
