#include "tools/eval/logits.h"

#include <algorithm>
#include <cmath>

namespace oq {

double log_sum_exp(std::span<const float> logits) {
  const float top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float l : logits) sum += std::exp(double(l - top));
  return std::log(sum) + double(top);
}

double negative_log_likelihood(std::span<const float> logits, int32_t target) {
  return log_sum_exp(logits) - double(logits[size_t(target)]);
}

int32_t best_token(std::span<const float> logits) {
  return int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

double kl_divergence(std::span<const float> reference, std::span<const float> model) {
  const double p_total = log_sum_exp(reference), q_total = log_sum_exp(model);
  double sum = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    const double log_p = double(reference[i]) - p_total, log_q = double(model[i]) - q_total;
    sum += std::exp(log_p) * (log_p - log_q);
  }
  return sum < 0 ? 0 : sum;  // rounding can leave less than nothing; NaN stays NaN
}

}  // namespace oq
