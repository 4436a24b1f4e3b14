#include "runtime/sampler.h"

#include <cmath>
#include <limits>
#include <map>

#include <doctest/doctest.h>

#include "format/error.h"

namespace {

using oq::Sampler;
using oq::SamplerParams;

/// Pearson's statistic of `n` samples against `expected` probabilities; a token that must not
/// come gives infinity.
double chi_square(Sampler& sampler, const std::vector<float>& logits,
                  const std::vector<double>& expected, int n) {
  std::vector<int> counts(logits.size());
  for (int i = 0; i < n; ++i) ++counts[size_t(sampler.sample(logits))];
  double sum = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (expected[i] == 0 && counts[i] > 0) return std::numeric_limits<double>::infinity();
    if (expected[i] == 0) continue;
    const double mean = expected[i] * n;
    sum += (counts[i] - mean) * (counts[i] - mean) / mean;
  }
  return sum;
}

/// What must come out: the probabilities of softmax(logits / temperature) over `kept`.
std::vector<double> softmax(const std::vector<float>& logits, double temperature,
                            const std::vector<int>& kept) {
  std::vector<double> p(logits.size());
  double total = 0;
  for (const int i : kept) total += p[size_t(i)] = std::exp(logits[size_t(i)] / temperature);
  for (double& x : p) x /= total;
  return p;
}

const std::vector<float> kLogits = {1.0f, 3.0f, -2.0f, 2.0f, 0.5f, 2.5f};

}  // namespace

TEST_CASE("the generator is xoshiro256** seeded by splitmix64") {
  oq::Random random(0);  // states from splitmix64's published outputs for seed 0
  CHECK(random.next() == 0x99EC5F36CB75F2B4u);
  CHECK(random.next() == 0xBF6E1F784956452Au);
  oq::Random other(1);
  CHECK(other.next() != 0x99EC5F36CB75F2B4u);
  for (int i = 0; i < 1000; ++i) {
    const double u = other.uniform();
    CHECK(u >= 0);
    CHECK(u < 1);
  }
}

TEST_CASE("greedy takes the largest, and the first of equals") {
  Sampler sampler({.temperature = 0});
  CHECK(sampler.sample(kLogits) == 1);
  CHECK(sampler.sample(std::vector<float>{2, 5, 5, 1}) == 1);
  CHECK(sampler.sample(std::vector<float>{-7}) == 0);
}

TEST_CASE("samples follow the distribution") {
  // Bounds: chi-square's 0.999 quantile for (kept - 1) degrees of freedom.
  const double bound[] = {0, 10.83, 13.82, 16.27, 18.47, 20.52};
  struct Case {
    SamplerParams params;
    std::vector<int> kept;
  };
  const Case cases[] = {
      {{.seed = 1}, {0, 1, 2, 3, 4, 5}},
      {{.temperature = 0.7, .seed = 2}, {0, 1, 2, 3, 4, 5}},
      {{.temperature = 2.5, .seed = 3}, {0, 1, 2, 3, 4, 5}},
      {{.top_k = 3, .seed = 4}, {1, 5, 3}},
      {{.top_k = 100, .seed = 5}, {0, 1, 2, 3, 4, 5}},
      {{.top_p = 0.7, .seed = 6}, {1, 5}},      // .455 + .276 reach it
      {{.top_p = 0.74, .seed = 7}, {1, 5, 3}},  // .731 does not
      {{.min_p = 0.5, .seed = 8}, {1, 5}},      // e^-0.5 = .61, e^-1 = .37
      {{.min_p = 0.3, .seed = 9}, {1, 5, 3}},
      {{.temperature = 0.5, .top_k = 4, .top_p = 0.9, .min_p = 0.1, .seed = 10}, {1, 5, 3}},
  };
  for (const Case& c : cases) {
    CAPTURE(c.params.seed);
    Sampler sampler(c.params);
    const auto expected = softmax(kLogits, c.params.temperature, c.kept);
    CHECK(chi_square(sampler, kLogits, expected, 20000) < bound[c.kept.size() - 1]);
  }
}

TEST_CASE("limits keep at least the likeliest") {
  for (const SamplerParams& p : {SamplerParams{.top_k = 1}, SamplerParams{.top_p = 1e-9},
                                 SamplerParams{.min_p = 1}, SamplerParams{.temperature = 1e-9}}) {
    Sampler sampler(p);
    for (int i = 0; i < 50; ++i) CHECK(sampler.sample(kLogits) == 1);
  }
}

TEST_CASE("top-k and top-p rank equal logits by id") {
  Sampler k({.top_k = 2});
  Sampler p({.top_p = 0.5});
  const std::vector<float> equal(4, 1.0f);
  for (int i = 0; i < 200; ++i) {
    CHECK(k.sample(equal) < 2);
    CHECK(p.sample(equal) < 2);
  }
}

TEST_CASE("top-p keeps exactly the head of a large vocabulary") {
  std::vector<float> logits(5000);  // shuffled: probability falls with i * 7 % 5000
  for (size_t i = 0; i < logits.size(); ++i) logits[i * 7 % 5000] = float(i) * -0.01f;
  Sampler sampler({.top_p = 0.95, .seed = 3});
  // The sum of e^(-i/100) over i < n reaches 95 % of the whole at n = 300.
  std::map<int32_t, int> seen;
  for (int i = 0; i < 4000; ++i) ++seen[sampler.sample(logits)];
  double worst = 0;
  for (const auto& [id, count] : seen) worst = std::min(worst, double(logits[size_t(id)]));
  CHECK(worst >= -2.995);
  CHECK(worst < -2.9);
}

TEST_CASE("the penalty is CTRL's, once for each token in the window") {
  Sampler sampler({.temperature = 0, .repeat_penalty = 2, .repeat_window = 2});
  const std::vector<float> logits = {1.0f, 1.5f, -1.0f};
  CHECK(sampler.sample(logits) == 1);
  sampler.accept(1);
  sampler.accept(1);
  CHECK(sampler.sample(logits) == 0);  // 1.5 / 2 once, not twice
  sampler.accept(0);                   // 0.75 against 0.5
  CHECK(sampler.sample(logits) == 1);
  sampler.accept(0);  // the window forgets 1
  CHECK(sampler.sample(logits) == 1);
  sampler.truncate(5);  // more than there are
  sampler.truncate(2);  // 1 and 1
  CHECK(sampler.sample(logits) == 0);
  sampler.truncate(0);
  CHECK(sampler.sample(logits) == 1);
  Sampler negative({.temperature = 0, .repeat_penalty = 2});
  negative.accept(0);
  CHECK(negative.sample(std::vector<float>{-1.0f, -1.5f}) == 1);
}

TEST_CASE("a seed gives the same tokens everywhere") {
  Sampler sampler({.temperature = 0.9, .top_k = 5, .top_p = 0.97, .seed = 42});
  std::vector<int32_t> ids;
  for (int i = 0; i < 32; ++i) {
    ids.push_back(sampler.sample(kLogits));
    sampler.accept(ids.back());
  }
  const std::vector<int32_t> golden = {1, 1, 5, 3, 0, 5, 5, 3, 5, 5, 5, 1, 3, 1, 5, 3,
                                       5, 3, 5, 5, 1, 1, 1, 5, 1, 1, 1, 3, 5, 1, 1, 5};
  CHECK(ids == golden);
  sampler.reset();
  for (const int32_t id : golden) CHECK(sampler.sample(kLogits) == id);
}

TEST_CASE("damaged logits and senseless parameters are errors") {
  Sampler sampler({});
  const float inf = std::numeric_limits<float>::infinity();
  CHECK_THROWS_AS(sampler.sample({}), oq::Error);
  for (const float bad : {inf, -inf, std::nanf("")}) {
    CHECK_THROWS_AS(sampler.sample(std::vector<float>{1, bad, 2}), oq::Error);
  }
  for (const SamplerParams& p :
       {SamplerParams{.temperature = -1}, SamplerParams{.temperature = std::nan("")},
        SamplerParams{.top_k = -1}, SamplerParams{.top_p = 0}, SamplerParams{.top_p = 1.5},
        SamplerParams{.min_p = -0.1}, SamplerParams{.min_p = 2}, SamplerParams{.repeat_penalty = 0},
        SamplerParams{.repeat_window = -1}}) {
    CHECK_THROWS_AS(Sampler{p}, oq::Error);
  }
}

TEST_CASE("a sampler asks for few logits where few decide") {
  using oq::kMostRanked;
  const auto wants = [](const SamplerParams& params, int64_t vocab = 1000) {
    Sampler sampler(params);
    for (int32_t id : {5, 7, 5, 2000}) sampler.accept(id);
    const auto request = sampler.request(vocab);
    return request ? request->count : 0;
  };
  CHECK(wants({.temperature = 0}) == 1);
  CHECK(wants({.temperature = 0, .repeat_penalty = 2}) == 3);  // 5 and 7 may fall
  CHECK(wants({.top_k = 40}) == 40);
  CHECK(wants({.top_k = 40, .repeat_penalty = 2}) == 42);
  CHECK(wants({.top_k = 127, .repeat_penalty = 2}) == 0);
  CHECK(wants({.top_p = 0.9}) == kMostRanked);
  CHECK(wants({.top_p = 0.9, .repeat_penalty = 2}) == 0);  // the total would change
  CHECK(wants({}) == 0);
  CHECK(wants({.min_p = 0.1}) == 0);
  CHECK(wants({.top_k = 40}, 40) == 0);  // all of them
}

TEST_CASE("a nucleus that the ranking does not decide is left to all logits") {
  using oq::Ranking;
  const std::vector<float> logits(1000, 1.0f);
  Sampler sampler({.top_p = 0.5, .seed = 1}), whole({.top_p = 0.5, .seed = 1});
  Ranking ranking;
  rank_logits(logits, *sampler.request(1000), ranking);
  CHECK(ranking.tokens.size() == size_t(oq::kMostRanked));
  CHECK(ranking.tokens[3] == Ranking::Token{3, 1.0f});
  CHECK(ranking.total == 1000);
  CHECK(!sampler.sample_ranked(ranking));
  ranking.total = 20;  // exactly at the edge after 10
  CHECK(!sampler.sample_ranked(ranking));
  ranking.finite = false;
  CHECK(!sampler.sample_ranked(ranking));
  CHECK(sampler.sample(logits) == whole.sample(logits));  // no random number was lost
}
