#include "tools/eval/statistics.h"

#include <cmath>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include "tools/eval/logits.h"
#include "tools/eval/perplexity.h"

using namespace oq;
using doctest::Approx;

TEST_CASE("the standard error is the sample's deviation over the root of n") {
  Statistics s;
  CHECK(std::isnan(s.standard_error()));
  s.add(3);
  CHECK(std::isnan(s.standard_error()));  // one value says nothing of others
  for (double x : {5.0, 7.0, 9.0}) s.add(x);
  CHECK(s.count() == 4);
  CHECK(s.mean() == 6);
  // Deviations -3 -1 1 3: 20 / 3 is the variance, over 4 that of the mean.
  CHECK(s.standard_error() == Approx(std::sqrt(20.0 / 3 / 4)));
}

TEST_CASE("an accuracy's standard error is that of a share") {
  Statistics s;
  for (int i = 0; i < 50; ++i) s.add(i % 5 == 0 ? 1 : 0);
  CHECK(s.standard_error() == Approx(std::sqrt(0.2 * 0.8 / 49)));
}

TEST_CASE("numbers far from zero keep their spread") {
  Statistics s;
  for (double x : {1e9 + 1, 1e9 + 2, 1e9 + 3}) s.add(x);
  CHECK(s.standard_error() == Approx(std::sqrt(1.0 / 3)));
}

TEST_CASE("quantiles lie between neighbours") {
  const std::vector<double> v = {40, 10, 30, 20};
  CHECK(quantile(v, 0) == 10);
  CHECK(quantile(v, 1) == 40);
  CHECK(quantile(v, 0.5) == 25);
  CHECK(quantile(v, 0.99) == Approx(39.7));  // 3 * 0.99 = 2.97 steps from the lowest
  CHECK(quantile({7}, 0.99) == 7);
}

TEST_CASE("likelihoods of logits") {
  const std::vector<float> logits = {0, std::log(3.0f), -1000};
  CHECK(log_sum_exp(logits) == Approx(std::log(4.0)));
  CHECK(negative_log_likelihood(logits, 0) == Approx(std::log(4.0)));
  CHECK(negative_log_likelihood(logits, 1) == Approx(std::log(4.0 / 3)));
  CHECK(best_token(logits) == 1);
  const std::vector<float> tie = {2, 5, 5};
  CHECK(best_token(tie) == 1);
  const std::vector<float> large = {2000, 2000};
  CHECK(log_sum_exp(large) == Approx(2000 + std::log(2.0)));
}

TEST_CASE("divergence of distributions that can be written down") {
  const std::vector<float> half = {0, 0}, quarter = {std::log(0.25f) + 7, std::log(0.75f) + 7};
  CHECK(kl_divergence(half, quarter) == Approx(0.5 * std::log(2.0) + 0.5 * std::log(2.0 / 3)));
  CHECK(kl_divergence(quarter, half) == Approx(0.25 * std::log(0.5) + 0.75 * std::log(1.5)));
  CHECK(kl_divergence(half, half) == 0);
  const std::vector<float> sure = {100, -1000};
  CHECK(kl_divergence(sure, half) == Approx(std::log(2.0)));
  const std::vector<float> broken = {std::numeric_limits<float>::quiet_NaN(), 0};
  CHECK(std::isnan(kl_divergence(half, broken)));
}

TEST_CASE("a difference is judged window by window") {
  const auto of = [](std::vector<double> nll) {
    Perplexity p;
    double sum = 0;
    for (double x : nll) sum += x;
    p.perplexity = std::exp(sum / double(nll.size()));
    p.windows = int64_t(nll.size());
    p.window_nll = std::move(nll);
    return p;
  };
  // Windows differ much, models by the same: nothing is left to chance.
  const Difference same = paired_difference(of({1, 2, 3}), of({1.5, 2.5, 3.5}));
  CHECK(same.nll == Approx(0.5));
  CHECK(same.nll_standard_error == Approx(0).scale(1));
  CHECK(same.perplexity == Approx(std::exp(2.5) - std::exp(2.0)));

  // Differences 0.1, 0.3: their mean 0.2, deviation 0.1 * sqrt(2), over sqrt(2).
  const Perplexity a = of({1.0, 1.2}), b = of({1.1, 1.5});
  const Difference d = paired_difference(a, b);
  CHECK(d.nll == Approx(0.2));
  CHECK(d.nll_standard_error == Approx(0.1));
  // Of e^1.3 * {1.1, 1.5} - e^1.1 * {1.0, 1.2}: half the distance of the two.
  CHECK(d.perplexity_standard_error == Approx((0.4 * std::exp(1.3) - 0.2 * std::exp(1.1)) / 2));
  const Difference none = paired_difference(a, a);
  CHECK(none.perplexity == 0);
  CHECK(none.perplexity_standard_error == 0);
}
