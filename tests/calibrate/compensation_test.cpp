/// ABQ's rank-1 compensation: its gradients, what a step of learning makes of it, which blocks have
/// it, and that it is in the weights that are stored.

#include "tools/calibrate/learn/compensation.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/calibrate/first_block.h"
#include "tests/calibrate/problem.h"
#include "tests/calibrate/small_run.h"
#include "tests/variants.h"
#include "tools/calibrate/learn/loss.h"

using namespace oq;
using namespace oq::calibrate;
using test::FirstBlock;
using test::normals;
using test::TempDir;

namespace {

/// The loss that a block of given parameters has.
double loss_of(FirstBlock& block, const BlockParameters& p, const char* scheme,
               const Recipe& recipe) {
  const auto outcome = block.learn(scheme, 0, recipe, &p);
  std::vector<float> y(block.hidden->window(0).begin(), block.hidden->window(0).end());
  block.runner->forward(outcome.weights, block.options.scheme, y.data(), FirstBlock::kTokens);
  std::vector<float> unused(y.size());
  return relative_error(y, block.targets->window(0), block.runner->config().hidden, 1, unused);
}

/// Checks that from `from` to `to`, one step apart, elements went against the loss's slope at
/// `from`, `step` far, where that is large. Slopes are differences over `reach` to both sides,
/// which is to move a weight by several codes.
void check_step(FirstBlock& block, const char* scheme, const Recipe& recipe,
                const BlockParameters& from, const BlockParameters& to, const std::string& name,
                float reach, double step) {
  CAPTURE(name);
  const auto size = from.at(name).values().size();
  std::vector<double> slopes(size);
  double largest = 0;
  for (size_t i = 0; i < size; ++i) {
    BlockParameters p = from;
    float& v = p.at(name).values()[i];
    const float before = v;
    v = before + reach;
    const double up = loss_of(block, p, scheme, recipe);
    v = before - reach;
    slopes[i] = up - loss_of(block, p, scheme, recipe);
    largest = std::max(largest, std::fabs(slopes[i]));
  }
  int64_t large = 0, against = 0;
  for (size_t i = 0; i < size; ++i) {
    if (std::fabs(slopes[i]) < 0.2 * largest) continue;
    const double moved = double(to.at(name).values()[i]) - double(from.at(name).values()[i]);
    ++large;
    against += moved * slopes[i] < 0;
    CHECK(std::fabs(moved) == doctest::Approx(step).epsilon(0.01));
  }
  CHECK(large > int64_t(size) / 4);
  CHECK(against == large);
}

}  // namespace

TEST_CASE("gradients of a compensation are what finite differences say") {
  constexpr int64_t kOut = 11, kIn = 37;
  ThreadPool pool(2);
  const Matrix w(kOut, kIn, normals(kOut * kIn, 1)), g(kOut, kIn, normals(kOut * kIn, 2));
  Compensation c(kOut, kIn);
  c.forward(pool, w);
  CHECK(std::equal(w.values().begin(), w.values().end(), c.compensated.values().begin()));
  c.a = normals(kOut, 3);
  c.b = normals(kIn, 4);
  const auto value = [&] {  // <g, W + a b^T>, which is linear in a and in b
    c.forward(pool, w);
    double sum = 0;
    for (size_t i = 0; i < g.values().size(); ++i) {
      sum += double(g.values()[i]) * double(c.compensated.values()[i]);
    }
    return sum;
  };
  const auto check = [&](std::vector<float>& values, const std::vector<float>& gradient) {
    for (size_t i = 0; i < values.size(); ++i) {
      CAPTURE(i);
      const float before = values[i];
      values[i] = before + 0.5f;
      const double up = value();
      values[i] = before - 0.5f;
      const double down = value();
      values[i] = before;
      CHECK(double(gradient[i]) == doctest::Approx(up - down).epsilon(1e-4).scale(1));
    }
  };
  for (int again = 0; again < 2; ++again) {  // the second one leaves nothing of the first behind
    c.backward(g);
    check(c.a, c.d_a);
    check(c.b, c.d_b);
  }
}

TEST_CASE("a compensation learns against the slope of the block's loss") {
  const Recipe recipe{.decays = false, .compensation = true};
  const char* scheme = "w8a16";  // so fine that rounding hides no slope
  FirstBlock block(test::tiny_config());
  block.options.learning.transform = false;
  // Far from what the block computes, so that there is much to learn.
  const auto away = normals(block.targets->window(0).size(), 7);
  for (size_t i = 0; i < away.size(); ++i) block.targets->data()[i] += away[i];
  const BlockParameters start = block.learned(scheme, 0, recipe);
  const BlockParameters one = block.learned(scheme, 1, recipe);
  const BlockParameters two = block.learned(scheme, 2, recipe);
  const auto all = [&](const BlockParameters& p, const char* name, float value) {
    const auto v = p.at(name).values();
    return std::all_of(v.begin(), v.end(), [&](float x) { return x == value; });
  };
  CHECK(all(start, "down.rows", 0));
  CHECK(all(start, "down.columns", 1));
  CHECK(all(one, "down.columns", 1));  // while a is 0, b has no slope
  check_step(block, scheme, recipe, start, one, "down.rows", 0.1f, 1e-2);
  // Adam's second step, with the first gradient 0: 0.1 g / (1 - 0.9^2) by the root of
  // 0.001 g^2 / (1 - 0.999^2).
  const double second = 1e-2 * (0.1 / 0.19) / std::sqrt(0.001 / 0.001999);
  check_step(block, scheme, recipe, one, two, "down.columns", 10,
             second);  // times a, which is 0.01
}

TEST_CASE("a compensation is in the codes that are stored") {
  const Recipe recipe{.compensation = true};
  for (const ModelConfig& config : {test::tiny_config(), test::variant_configs()[5]}) {
    for (const bool transform : {false, true}) {
      for (const char* scheme : {"w2*a16", "w4a8g32"}) {
        CAPTURE(transform);
        const std::string text = scheme;
        CAPTURE(text);
        FirstBlock block(config);
        block.options.learning.transform = transform;
        const auto outcome = block.learn(scheme, 3, recipe);
        const BlockParameters& p = outcome.parameters;
        const BlockWeights base = transform ? folded(block, p) : block.weights;
        int64_t found = 0;
        for (const auto& entry : outcome.done) {
          const std::string& name = entry.first;
          CHECK(p.count(name + ".rows") == (name.ends_with("down") ? 1 : 0));
          if (!name.ends_with("down")) continue;
          ++found;
          CAPTURE(name);
          const auto a = p.at(name + ".rows").values(), b = p.at(name + ".columns").values();
          Matrix w = base.linears.at(name).weight;
          Matrix plain(w.rows(), w.cols()), truth = plain;
          WeightQuantizer quantizer(w.rows(), w.cols(), packing_of(block.options.scheme));
          const Clipping clipping = [&] {
            Clipping c;
            c.upper = p.at(name + ".upper");
            c.lower = p.at(name + ".lower");
            return c;
          }();
          quantizer.forward(block.runner->pool(), w, clipping, plain);
          for (int64_t r = 0; r < w.rows(); ++r) {
            for (int64_t k = 0; k < w.cols(); ++k) w(r, k) += a[size_t(r)] * b[size_t(k)];
          }
          quantizer.forward(block.runner->pool(), w, clipping, truth);
          const Matrix stored = entry.second.linear.dequantize();
          CHECK(std::equal(truth.values().begin(), truth.values().end(), stored.values().begin()));
          CHECK_FALSE(
              std::equal(plain.values().begin(), plain.values().end(), stored.values().begin()));
        }
        CHECK(found == std::max<int64_t>(1, config.experts));
      }
    }
  }
}

TEST_CASE("the first three blocks and the last four are compensated by abq, with --let alone") {
  const TempDir dir;
  test::TinyOq tiny;
  tiny.config.blocks = 9;
  test::make_tiny_oq(dir / "in.oq", tiny);
  const auto compensated = [&](const char* method, bool transform) {
    auto o = test::small_run(dir / "in.oq", dir / "out.oq", method, "w3a8");
    o.windows = 1;
    o.learning.transform = transform;
    o.save_parameters = dir / "p.safetensors";
    calibrate::calibrate(o);
    const Parameters p = read_parameters(o.save_parameters, tiny.config);
    std::set<int64_t> blocks;
    for (int64_t b = 0; b < tiny.config.blocks; ++b) {
      CAPTURE(b);
      for (const auto& entry : p.blocks[size_t(b)]) {
        if (!entry.first.ends_with(".rows") && !entry.first.ends_with(".columns")) continue;
        CHECK(entry.first.rfind("down.", 0) == 0);
        const auto v = entry.second.values();
        const float start = entry.first.ends_with(".rows") ? 0 : 1;
        CHECK(std::any_of(v.begin(), v.end(), [&](float x) { return x != start; }));
        blocks.insert(b);
      }
      CHECK(p.blocks[size_t(b)].count("down.rows") == p.blocks[size_t(b)].count("down.columns"));
    }
    return blocks;
  };
  CHECK(compensated("abq", true) == std::set<int64_t>{0, 1, 2, 5, 6, 7, 8});
  CHECK(compensated("abq", false).empty());
  CHECK(compensated("omniquant", true).empty());
}

TEST_CASE("abq balances up with down, but for OPT as its own code has it") {
  const TempDir dir;
  const auto balances = [&](const ModelConfig& config, bool faithful) {
    test::TinyOq tiny;
    tiny.config = config;
    test::make_tiny_oq(dir / "in.oq", tiny);
    auto o = test::small_run(dir / "in.oq", dir / "out.oq", "abq", "w3a8");
    o.learning.epochs = 1;
    o.learning.faithful = faithful;
    o.save_parameters = dir / "p.safetensors";
    calibrate::calibrate(o);
    return read_parameters(o.save_parameters, config).blocks[0].count("down.scale") == 1;
  };
  const ModelConfig opt = test::variant_configs()[0];
  REQUIRE(opt.positions == PositionKind::learned);
  CHECK(balances(opt, false));
  CHECK_FALSE(balances(opt, true));
  CHECK(balances(test::tiny_config(), true));
}
