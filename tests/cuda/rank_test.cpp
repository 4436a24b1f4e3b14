/// Ranked logits on the device against those of the host, and the sampler that lives on them.

#include <cmath>

#include <doctest/doctest.h>

#include "runtime/backend/cuda/ranker.h"
#include "runtime/ranking.h"
#include "runtime/sampler.h"
#include "tests/cuda/on_device.h"

using namespace oq;
using namespace oq::test;

namespace {

/// Logits with ties, both zeros, and a long tail.
std::vector<float> some_logits(Rng& rng, int vocab) {
  std::vector<float> logits = random_floats(rng, size_t(vocab), 0.0f, 3.0f);
  for (size_t i = 0; i < logits.size(); i += 7) logits[i] = float(int(logits[i]));
  for (size_t i = 3; i < logits.size(); i += 11) logits[i] = -0.0f;
  return logits;
}

}  // namespace

TEST_CASE("logits are ranked on the device as on the host") {
  cuda::Stream stream;
  CudaRanker ranker(stream);
  Rng rng(4);
  for (const int vocab : {1, 2, 100, 4096, 4097, 9001}) {
    const auto logits = some_logits(rng, vocab);
    const cuda::Memory memory = cuda::uploaded(stream, std::span<const float>(logits));
    const std::vector<int32_t> also = {0, vocab / 2, vocab - 1};
    for (const int64_t count : {1, 5, 128}) {
      for (const double temperature : {0.0, 0.1, 1.7}) {
        const RankRequest request{
            .vocab = vocab, .count = count, .temperature = temperature, .also = also};
        Ranking truth, got;
        rank_logits(logits, request, truth);
        ranker.run(memory.as<float>(), request, got);
        CAPTURE(vocab);
        CAPTURE(count);
        CAPTURE(temperature);
        CHECK(truth.finite);
        CHECK(got.finite);
        CHECK(got.tokens == truth.tokens);
        CHECK(got.also == truth.also);
        CHECK(std::fabs(got.total - truth.total) <= 1e-10 * truth.total);
      }
    }
    if (vocab < 100) continue;
    auto bad = logits;
    bad[size_t(vocab) - 1] = vocab % 2 == 0 ? INFINITY : NAN;
    const cuda::Memory spoilt = cuda::uploaded(stream, std::span<const float>(bad));
    Ranking got;
    ranker.run(spoilt.as<float>(), {.vocab = vocab}, got);
    CHECK(!got.finite);
    ranker.run(spoilt.as<float>(), {.vocab = vocab - 1}, got);
    CHECK(got.finite);
  }
  CHECK(CudaRanker::can_rank(262144));
  CHECK(!CudaRanker::can_rank(262145));
}

TEST_CASE("a sampler draws from the device's ranking what it draws from all logits") {
  cuda::Stream stream;
  CudaRanker ranker(stream);
  Rng rng(6);
  const SamplerParams kinds[] = {
      {.temperature = 0},
      {.temperature = 0, .repeat_penalty = 1.5, .repeat_window = 20},
      {.temperature = 0.8, .top_k = 40, .seed = 3},
      {.temperature = 1.3,
       .top_k = 30,
       .top_p = 0.9,
       .min_p = 0.05,
       .repeat_penalty = 1.2,
       .seed = 4},
      {.temperature = 0.5, .top_p = 0.7, .seed = 5},
      {.temperature = 0.6, .top_p = 0.9, .min_p = 0.02, .seed = 6},
  };
  for (const SamplerParams& params : kinds) {
    Sampler all(params), few(params);
    int answered = 0;
    for (int i = 0; i < 25; ++i) {
      auto logits = some_logits(rng, 5000);
      for (float& x : logits) x *= i % 2 == 0 ? 2.0f : 1.0f;
      const cuda::Memory memory = cuda::uploaded(stream, std::span<const float>(logits));
      const int32_t truth = all.sample(logits);
      const auto request = few.request(5000);
      REQUIRE(request.has_value());
      Ranking ranking;
      ranker.run(memory.as<float>(), *request, ranking);
      const auto got = few.sample_ranked(ranking);
      answered += got.has_value();
      CHECK((got ? *got : few.sample(logits)) == truth);
      all.accept(truth);
      few.accept(truth);
    }
    CAPTURE(params.top_p);
    CHECK(answered > 10);
  }
}
