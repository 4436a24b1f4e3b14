#pragma once

#include <cstdint>
#include <span>

namespace oq {

/// log of the sum of exp of the logits: log p of token t is logits[t] minus this.
double log_sum_exp(std::span<const float> logits);

/// -log softmax(logits)[target], in double.
double negative_log_likelihood(std::span<const float> logits, int32_t target);

/// The first of the largest logits: what greedy decoding takes.
int32_t best_token(std::span<const float> logits);

/// KL(reference || model) = sum p (log p - log q), in nats, of the distributions that the logits
/// stand for. PRECOND: as many logits on both sides.
double kl_divergence(std::span<const float> reference, std::span<const float> model);

}  // namespace oq
