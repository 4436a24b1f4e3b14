#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/support.h"
#include "tests/tiny_oq.h"
#include "tools/calibrate/learn/block_learner.h"

namespace oq::test {

/// The first block of a tiny model with a window of text, or more, for methods that learn.
struct FirstBlock {
  static constexpr int64_t kTokens = 24;

  /// What a learner leaves behind.
  struct Outcome {
    calibrate::BlockParameters parameters;
    calibrate::BlockWeights weights;  ///< as they are executed
    std::map<std::string, calibrate::BlockJob::Done> done;
  };

  explicit FirstBlock(const ModelConfig& config, int64_t count = 1) {
    TinyOq tiny;
    tiny.config = config;
    file = make_tiny_oq(dir / "m.oq", tiny);
    runner = std::make_unique<calibrate::BlockRunner>(file, kTokens, 2);
    const auto states = [&] {
      return std::make_unique<calibrate::HiddenStates>(count, kTokens, config.hidden, 1 << 30,
                                                       dir.path());
    };
    hidden = states();
    targets = states();
    for (int32_t w = 0; w < count; ++w) {
      windows.emplace_back();
      for (int32_t i = 0; i < kTokens; ++i) {
        windows.back().push_back((i * i * 7 + (3 + w) * i + 5) % 101);
      }
    }
    runner->embed(windows, hidden->data());
    weights = calibrate::BlockWeights::load(*file, config, 0);
    aim();
    options.method = "omniquant";
    options.output = dir / "out.oq";
    options.tuning = calibrate::Tuning::mse;
  }

  /// Sets the targets to what the weights, as they stand, make of the hidden states.
  void aim() {
    runner->embed(windows, targets->data());
    for (size_t w = 0; w < windows.size(); ++w) {
      runner->forward(weights, {}, targets->window(static_cast<int64_t>(w)).data(), kTokens);
    }
  }

  calibrate::BlockJob job(const calibrate::BlockParameters* given = nullptr) {
    return {*runner,
            *hidden,
            options,
            observer,
            0,
            weights,
            {.targets = targets.get(), .parameters = given}};
  }

  /// After `epochs`, a step each; or with `given` parameters, as they are.
  Outcome learn(const char* scheme, int64_t epochs, const calibrate::Recipe& recipe = {},
                const calibrate::BlockParameters* given = nullptr) {
    options.scheme = Scheme::parse(scheme);
    options.learning.epochs = epochs;
    calibrate::BlockGraph graph(*file, runner->config(), kTokens, runner->pool());
    calibrate::BlockJob j = job(given);
    calibrate::BlockLearner(j, graph, recipe).run();
    return {j.parameters(), std::move(j.weights()), j.done()};
  }

  calibrate::BlockParameters learned(const char* scheme, int64_t epochs,
                                     const calibrate::Recipe& recipe = {}) {
    return learn(scheme, epochs, recipe).parameters;
  }

  const TempDir dir;
  std::shared_ptr<const File> file;
  std::unique_ptr<calibrate::BlockRunner> runner;
  std::vector<std::vector<int32_t>> windows;
  std::unique_ptr<calibrate::HiddenStates> hidden, targets;
  calibrate::BlockWeights weights;
  calibrate::Options options;
  const calibrate::Observer observer;
};

/// The block as the transformations of `start` leave it, its inputs with it.
inline calibrate::BlockWeights folded(FirstBlock& block, const calibrate::BlockParameters& start) {
  calibrate::Transformation t(block.runner->config(), block.weights,
                              {.shifts = block.options.scheme.quantizes_activations()});
  for (calibrate::Pair& pair : t.pairs()) {
    const auto take = [&](const char* what, std::vector<float>& to) {
      const auto found = start.find(pair.name + what);
      if (found != start.end())
        to.assign(found->second.values().begin(), found->second.values().end());
    };
    take(".scale", pair.scale);
    take(".shift", pair.shift);
  }
  calibrate::BlockWeights w = block.weights;
  t.fold(block.runner->pool(), block.weights, w);
  return w;
}

}  // namespace oq::test
