/// Where a block's learning starts, and which of its ways `Recipe` turns on: each seen in what one
/// or two steps move.

#include <algorithm>
#include <cmath>
#include <numeric>

#include <doctest/doctest.h>

#include "tests/calibrate/first_block.h"
#include "tests/variants.h"

using namespace oq;
using namespace oq::calibrate;
using test::FirstBlock;
using test::folded;

namespace {

/// Sums of x^2 of every linear's inputs, and a hundredth of their mean.
std::map<std::string, std::vector<float>> squares_of_inputs(FirstBlock& block,
                                                            const BlockWeights& w) {
  std::map<std::string, std::vector<float>> squares;
  const auto see = [&](const std::vector<std::string>& group, const float* x, int64_t rows,
                       int64_t cols) {
    std::vector<double> h(size_t(cols), 0.0);
    for (int64_t i = 0; i < rows * cols; ++i) h[size_t(i % cols)] += double(x[i]) * double(x[i]);
    const double mean = std::accumulate(h.begin(), h.end(), 0.0) / double(cols);
    for (const std::string& name : group) {
      for (double v : h) squares[name].push_back(float(v + 0.01 * mean));
    }
  };
  std::vector<float> x(block.hidden->window(0).begin(), block.hidden->window(0).end());
  block.runner->forward(w, {}, x.data(), FirstBlock::kTokens, see);
  return squares;
}

/// The most that one of a block's logits of clipping has moved, in rates.
double farthest(const BlockParameters& from, const BlockParameters& to, double rate) {
  double most = 0;
  for (const auto& [name, before] : from) {
    if (!name.ends_with(".upper") && !name.ends_with(".lower")) continue;
    const auto a = before.values(), b = to.at(name).values();
    for (size_t i = 0; i < a.size(); ++i) {
      most = std::max(most, std::fabs(double(b[i]) - double(a[i])));
    }
  }
  return most / rate;
}

}  // namespace

TEST_CASE("clipping starts from grids searched by the inputs that transformations leave") {
  for (const ModelConfig& config : test::variant_configs()) {
    FirstBlock block(config);
    for (const char* scheme : {"w3a16", "w2a16g64", "w4a4"}) {
      CAPTURE(scheme);
      block.options.learning.transform = true;
      const BlockParameters start = block.learned(scheme, 0);
      const BlockWeights w = folded(block, start);
      int64_t equal = 0, all = 0;
      for (const auto& [name, h] : squares_of_inputs(block, w)) {
        const Matrix& m = w.linears.at(name).weight;
        const GridOptions grid{.packing = packing_of(block.options.scheme), .tuning = Tuning::mse};
        WeightQuantizer quantizer(m.rows(), m.cols(), grid.packing);
        const Clipping truth = quantizer.searched(block.runner->pool(), m, grid, h);
        const auto a = truth.upper.values(), b = start.at(name + ".upper").values();
        for (size_t i = 0; i < a.size(); ++i) equal += std::fabs(a[i] - b[i]) < 1e-4f;
        all += int64_t(a.size());
      }
      CAPTURE(all);
      CHECK(equal >= all * 99 / 100);  // rounding decides between grids that cost the same
    }
  }
}

TEST_CASE("rates fall along half a cosine, or stay") {
  FirstBlock block(test::tiny_config());
  block.options.learning.transform = false;
  const double rate = block.options.learning.clip_rate;
  const BlockParameters start = block.learned("w3a16", 0);
  // A step of Adam is the rate where gradients agree. Of two steps, the second is at cos(pi/2).
  CHECK(farthest(start, block.learned("w3a16", 1), rate) == doctest::Approx(1).epsilon(1e-3));
  const double falling = farthest(start, block.learned("w3a16", 2), rate);
  CHECK(falling > 1.4);
  CHECK(falling < 1.51);
  CHECK(farthest(start, block.learned("w3a16", 2, {.decays = false}), rate) > 1.9);
}

TEST_CASE("bounds that learn together move together; apart, some do not") {
  FirstBlock block(test::tiny_config());
  block.options.learning.transform = false;
  const auto against = [&](WeightQuantizer::Bounds bounds) {
    const BlockParameters from = block.learned("w3a16", 0);
    const BlockParameters to = block.learned("w3a16", 1, {.bounds = bounds});
    int64_t count = 0;
    for (const auto& [name, before] : from) {
      if (!name.ends_with(".upper")) continue;
      const std::string lower = name.substr(0, name.size() - 5) + "lower";
      for (int64_t r = 0; r < before.rows(); ++r) {
        const float up = to.at(name)(r, 0) - before(r, 0);
        const float down = to.at(lower)(r, 0) - from.at(lower)(r, 0);
        count += up * down < 0;
      }
    }
    return count;
  };
  CHECK(against(WeightQuantizer::Bounds::together) == 0);
  CHECK(against(WeightQuantizer::Bounds::apart) > 20);
}

TEST_CASE("the paper's own way is another recipe") {
  Options o;
  o.method = "omniquant";
  const Recipe own = Recipe::of(o);
  o.learning.faithful = true;
  const Recipe paper = Recipe::of(o);
  CHECK(own.relative);
  CHECK(own.decays);
  CHECK(own.bounds == WeightQuantizer::Bounds::apart);
  CHECK_FALSE(own.own_targets);
  CHECK_FALSE(paper.relative);
  CHECK_FALSE(paper.decays);
  CHECK(paper.bounds == WeightQuantizer::Bounds::together);
  CHECK_FALSE(paper.own_targets);
}

TEST_CASE("two targets with --aug-loss, and in ABQ's own code") {
  Options o;
  for (const char* method : {"omniquant", "abq", "auto"}) {
    o = {};
    o.method = method;
    CHECK_FALSE(Recipe::of(o).own_targets);
    o.learning.aug_loss = true;
    CHECK(Recipe::of(o).own_targets);
  }
  o = {};
  o.method = "abq";
  o.learning.faithful = true;
  CHECK(Recipe::of(o).own_targets);
}

TEST_CASE("what attention maps add to the loss reaches queries and keys, and no other linear") {
  FirstBlock block(test::tiny_config());
  block.options.learning.transform = false;
  const BlockParameters without = block.learned("w3a16", 1);
  const BlockParameters with = block.learned("w3a16", 1, {.attention = 100});
  for (const auto& entry : without) {
    const std::string& name = entry.first;
    CAPTURE(name);
    const auto a = entry.second.values(), b = with.at(name).values();
    const bool same = std::equal(a.begin(), a.end(), b.begin());
    CHECK(same == (name.rfind("q.", 0) != 0 && name.rfind("k.", 0) != 0));
  }
}
