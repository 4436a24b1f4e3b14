/// What stands behind the last block, against finite differences; and the last block, which learns
/// from it.

#include "tools/calibrate/learn/head_graph.h"

#include <cmath>
#include <numeric>
#include <random>

#include <doctest/doctest.h>

#include "tests/calibrate/first_block.h"
#include "tests/variants.h"
#include "tools/calibrate/methods/output_judge.h"

using namespace oq;
using namespace oq::calibrate;
using test::FirstBlock;

namespace {

constexpr int64_t kTokens = 70;  // more than whose logits exist at a time

std::vector<float> some_states(const ModelConfig& config, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.1f, 1);
  std::vector<float> x(size_t(kTokens * config.hidden));
  for (float& v : x) v = normal(rng);
  return x;
}

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / double(values.size());
}

/// Of a loss, by some of x's elements, in the middle of two differences.
template <class F>
void check_gradient(std::vector<float> x, const std::vector<float>& gradient, const F& loss) {
  double largest = 0;
  for (const float g : gradient) largest = std::max(largest, std::fabs(double(g)));
  CHECK(largest > 1e-4);
  for (size_t i = 0; i < x.size(); i += 97) {
    const float kept = x[i], step = 4e-3f;
    x[i] = kept + step;
    const double above = loss(x);
    x[i] = kept - step;
    const double below = loss(x);
    x[i] = kept;
    CAPTURE(i);
    CHECK(std::fabs((above - below) / (2 * double(step)) - double(gradient[i])) < 0.01 * largest);
  }
}

/// What a block learned: the loss of its first epoch, and how far the model's predictions are from
/// full precision's with it, on a window that was learned from.
struct Learned {
  double first_loss, divergence;
};

Learned learn(const ModelConfig& config, const Recipe& recipe, int64_t epochs) {
  FirstBlock block(config, 8);
  Options& o = block.options;
  o.scheme = Scheme::parse("w2a8");
  o.learning.transform = true;
  o.learning.epochs = epochs;
  o.learning.batch = 8;
  BlockGraph graph(*block.file, config, FirstBlock::kTokens, block.runner->pool());
  BlockJob job = block.job();
  BlockLearner(job, graph, recipe).run();
  job.hold_out(8);  // the judge looks at all
  return {epochs > 0 ? job.losses().front() : 0,
          mean(OutputJudge(*block.runner).divergence(job, job.weights()))};
}

}  // namespace

TEST_CASE("gradients of a window's loss and of predictions' divergence, in any variant") {
  for (const ModelConfig& config : test::variant_configs()) {
    CAPTURE(config.embedding_width);
    CAPTURE(config.final_norm);
    FirstBlock block(config);
    HeadGraph head(*block.file, config, block.runner->pool());
    const std::vector<float> x = some_states(config, 1), expected = some_states(config, 2);
    std::vector<int32_t> window;
    for (int32_t i = 0; i < kTokens; ++i) window.push_back((i * i * 7 + 5) % 101);

    std::vector<float> gradient(x.size(), NAN);
    const double loss = head.loss(x.data(), window, gradient.data());
    CHECK(loss == head.loss(x.data(), window, nullptr));
    check_gradient(x, gradient, [&](const std::vector<float>& at) {
      return head.loss(at.data(), window, nullptr);
    });

    gradient.assign(x.size(), 0);
    constexpr double kShare = 0.25;
    const auto divergence = [&](const std::vector<float>& at) {
      return kShare * mean(head.divergence(expected.data(), at.data(), kTokens));
    };
    const double found =
        head.divergence_loss(expected.data(), x.data(), kTokens, kShare, gradient.data());
    CHECK(found == doctest::Approx(divergence(x)).epsilon(1e-5));
    CHECK(divergence(expected) < 1e-9);
    check_gradient(x, gradient, divergence);
    std::vector<float> twice = gradient;  // it is added to what is there
    head.divergence_loss(expected.data(), x.data(), kTokens, kShare, twice.data());
    for (size_t i = 0; i < twice.size(); i += 31) CHECK(twice[i] == 2 * gradient[i]);
  }
}

TEST_CASE("the last block learns what the model predicts, others learn their outputs") {
  ModelConfig config = test::tiny_config();
  const Recipe outputs{.predictions = false};
  CHECK(learn(config, {}, 3).divergence == learn(config, outputs, 3).divergence);
  config.blocks = 1;
  const double start = learn(config, {}, 0).divergence;
  // After 20 steps it is 0.94 to 0.96 of what outputs learn, by the ISA's sums; after 80, 0.79 to
  // 0.81.
  constexpr int64_t kEpochs = 80;
  const Learned learned = learn(config, {}, kEpochs);
  CHECK(learned.first_loss == doctest::Approx(start).epsilon(1e-4));
  CHECK(learned.divergence < 0.9 * start);
  CHECK(learned.divergence < 0.95 * learn(config, outputs, kEpochs).divergence);
}
