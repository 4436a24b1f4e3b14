/// Where a block's learning starts, and which of its ways `Recipe` turns on: each seen in what one
/// or two steps move.

#include <algorithm>
#include <cmath>
#include <numeric>

#include <doctest/doctest.h>

#include "tests/calibrate/first_block.h"
#include "tests/variants.h"
#include "tools/calibrate/learn/loss.h"
#include "tools/calibrate/work_folder.h"

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

TEST_CASE("linears learn in forms of their own") {
  for (const char* scheme : {"w3a16", "w3a8"}) {
    FirstBlock block(test::tiny_config());
    block.options.learning.transform = true;
    Matrix& down = block.weights.linears.at("down").weight;
    for (const int64_t weak : {3, 17}) {
      for (int64_t r = 0; r < down.rows(); ++r) down(r, weak) *= 8;
    }
    block.aim();
    const Recipe recipe{
        .forms = {{"q", {.bits = 5, .weak = {}}}, {"down", {.bits = 2, .weak = {3, 17}}}}};
    const auto error = [&](const FirstBlock::Outcome& o) {
      std::vector<float> x(block.hidden->window(0).begin(), block.hidden->window(0).end());
      std::vector<float> unused(x.size());
      block.runner->forward(o.weights, block.options.scheme, x.data(), FirstBlock::kTokens);
      return relative_error(x, block.targets->window(0), block.runner->config().hidden, 1, unused);
    };
    const FirstBlock::Outcome start = block.learn(scheme, 0, recipe);
    const FirstBlock::Outcome end = block.learn(scheme, 20, recipe);
    CHECK(error(end) < 0.9 * error(start));
    for (const auto& [name, done] : end.done) {
      const QuantizedLinear& q = done.linear;
      CHECK(q.packing.bits == (name == "q" ? 5 : name == "down" ? 2 : 3));
      CHECK(q.weak == (name == "down" ? std::vector<uint32_t>{3, 17} : std::vector<uint32_t>{}));
      CHECK(done.report.weak_columns == int64_t(q.weak.size()));
      const LinearWeights& executed = end.weights.linears.at(name);
      CHECK(executed.weak == q.weak);
      CHECK(std::ranges::equal(executed.weight.values(), q.dequantize().values()));
    }
    // Without its weak columns, down has more error.
    Recipe without = recipe;
    without.forms.at("down").weak = {};
    CHECK(error(end) < error(block.learn(scheme, 20, without)));
  }
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

TEST_CASE("a window of first tokens is learned from as such, and shown to those that ask") {
  FirstBlock block(test::tiny_config(), 2);
  for (HiddenStates* states : {block.hidden.get(), block.targets.get()}) {
    block.runner->embed(block.windows, states->data(), true);
    states->begin_with_first_tokens();
  }
  const auto forward = [&](const BlockWeights& w, const Scheme& scheme, const HiddenStates& from,
                           int64_t window) {
    std::vector<float> x(from.window(window).begin(), from.window(window).end());
    block.runner->forward(w, scheme, x.data(), FirstBlock::kTokens, {}, from.sight(window));
    return x;
  };
  for (int64_t w = 0; w < 2; ++w) {
    const auto x = forward(block.weights, {}, *block.targets, w);
    std::copy(x.begin(), x.end(), block.targets->window(w).begin());
  }
  block.options.learning.batch = 2;
  const auto losses_and_start = [&](int64_t epochs) {
    block.options.scheme = Scheme::parse("w3a8q4kv4");
    block.options.learning.epochs = epochs;
    BlockGraph graph(*block.file, block.runner->config(), FirstBlock::kTokens,
                     block.runner->pool());
    BlockJob job = block.job();
    BlockLearner(job, graph, {}).run();
    return std::pair(job.losses(), job.weights());
  };
  const BlockWeights start = losses_and_start(0).second;
  double expected = 0;
  for (int64_t w = 0; w < 2; ++w) {
    const auto x = forward(start, block.options.scheme, *block.hidden, w);
    std::vector<float> unused(x.size());
    expected +=
        relative_error(x, block.targets->window(w), block.runner->config().hidden, 0.5, unused);
  }
  CHECK(losses_and_start(1).first.front() == doctest::Approx(expected).epsilon(1e-3));

  BlockJob job = block.job();
  int groups = 0;
  const BlockRunner::Tap count = [&](const auto&, const float*, int64_t, int64_t) { ++groups; };
  job.observe(count);
  const int of_texts = std::exchange(groups, 0);
  job.observe(count, Sight::alone);
  CHECK(of_texts > 0);
  CHECK(groups == of_texts);
}

TEST_CASE("shifts start in the middle of texts' inputs, whatever first tokens are") {
  const ModelConfig opt = test::variant_configs()[0];
  FirstBlock with(opt, 2), text(opt);
  with.hidden->begin_with_first_tokens();
  with.targets->begin_with_first_tokens();
  for (float& v : with.hidden->window(0)) v = 100 * v + 50;
  const auto copy = [](const HiddenStates& from, HiddenStates& to) {
    std::copy(from.window(1).begin(), from.window(1).end(), to.window(0).begin());
  };
  copy(*with.hidden, *text.hidden);
  copy(*with.targets, *text.targets);
  text.options.learning.transform = with.options.learning.transform = true;
  const BlockParameters expected = text.learned("w4a4", 0);
  int shifts = 0;
  for (const auto& entry : with.learned("w4a4", 0)) {
    if (!entry.first.ends_with(".shift")) continue;
    CAPTURE(entry.first);
    const auto a = entry.second.values(), b = expected.at(entry.first).values();
    CHECK(std::equal(a.begin(), a.end(), b.begin(), b.end()));
    CHECK(std::any_of(a.begin(), a.end(), [](float v) { return v != 0; }));
    ++shifts;
  }
  CHECK(shifts > 0);
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

namespace {

/// Of a linear's input channels: the largest |x|, and the middle of their range.
struct ChannelRange {
  std::vector<float> largest, middle;
};
std::map<std::string, ChannelRange> ranges_of_inputs(FirstBlock& block) {
  std::map<std::string, ChannelRange> ranges;
  const auto see = [&](const std::vector<std::string>& group, const float* x, int64_t rows,
                       int64_t cols) {
    for (const std::string& name : group) {
      for (int64_t k = 0; k < cols; ++k) {
        float low = x[k], high = x[k];
        for (int64_t t = 1; t < rows; ++t) {
          low = std::min(low, x[t * cols + k]);
          high = std::max(high, x[t * cols + k]);
        }
        ranges[name].largest.push_back(std::max(high, -low));
        ranges[name].middle.push_back((low + high) / 2);
      }
    }
  };
  std::vector<float> x(block.hidden->window(0).begin(), block.hidden->window(0).end());
  block.runner->forward(block.weights, {}, x.data(), FirstBlock::kTokens, see);
  return ranges;
}

float largest_of_column(const Matrix& w, int64_t k) {
  float m = 0;
  for (int64_t r = 0; r < w.rows(); ++r) m = std::max(m, std::fabs(w(r, k)));
  return m;
}

void check_near(std::span<const float> got, const std::vector<float>& want) {
  REQUIRE(got.size() == want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    CAPTURE(i);
    CHECK(got[i] == doctest::Approx(want[i]).epsilon(1e-5).scale(1e-3));
  }
}

/// Where v -> o starts: one channel for all query heads that share a KV head's. The largest of
/// their sqrt(max |x| / max |w|), or the first's, and the mean of their middles.
void check_start_of_o(FirstBlock& block, const BlockParameters& start, bool first_alone) {
  const ModelConfig& c = block.runner->config();
  const Matrix& w = block.weights.linears.at("o").weight;
  const ChannelRange x = ranges_of_inputs(block).at("o");
  const int64_t shared = c.heads / c.kv_heads;
  std::vector<float> scale, shift;
  int64_t others = 0;  // than the first query head's
  for (int64_t channel = 0; channel < c.kv_width(); ++channel) {
    float most = 0, first = 0, sum = 0;
    for (int64_t i = 0; i < shared; ++i) {
      const int64_t head = channel / c.head_dim * shared + i;
      const int64_t k = head * c.head_dim + channel % c.head_dim;
      const float s = std::sqrt(x.largest[size_t(k)] / largest_of_column(w, k));
      if (i == 0) first = s;
      most = std::max(most, s);
      sum += x.middle[size_t(k)];
    }
    others += most != first;
    scale.push_back(first_alone ? first : most);
    shift.push_back(sum / float(shared));
  }
  CHECK((others > 0) == (shared > 1));
  check_near(start.at("o.scale").values(), scale);
  CHECK(start.count("o.shift") == (c.qkv_bias && c.o_bias ? 1 : 0));
  if (start.count("o.shift") == 1) check_near(start.at("o.shift").values(), shift);
}

}  // namespace

TEST_CASE("a scale that query heads share starts at their largest; as in the paper, at the first") {
  ModelConfig mha = test::tiny_config(), mqa = mha, biased = mha;
  mha.kv_heads = mha.heads;
  mqa.kv_heads = 1;
  biased.qkv_bias = biased.o_bias = true;
  biased.norm = NormKind::layer;
  for (const ModelConfig& config : {test::tiny_config(), mha, mqa, biased}) {
    FirstBlock block(config);
    block.options.learning.transform = true;
    for (const bool faithful : {false, true}) {
      CAPTURE(faithful);
      block.options.learning.faithful = faithful;
      check_start_of_o(block, block.learned("w4a4", 0), faithful);
    }
  }
}

TEST_CASE("a scale before several linears starts from all of them; as in the paper, from one") {
  FirstBlock block(test::tiny_config());
  block.options.learning.transform = true;
  const auto& linears = block.weights.linears;
  const auto ranges = ranges_of_inputs(block);
  const auto expected = [&](const std::vector<std::string>& names) {
    const std::vector<float>& x = ranges.at(names[0]).largest;
    std::vector<float> scale;
    for (int64_t k = 0; k < int64_t(x.size()); ++k) {
      float w = 0;
      for (const std::string& name : names) {
        w = std::max(w, largest_of_column(linears.at(name).weight, k));
      }
      scale.push_back(std::sqrt(x[size_t(k)] / w));
    }
    return scale;
  };
  const BlockParameters own = block.learned("w4a4", 0);
  check_near(own.at("qkv.scale").values(), expected({"q", "k", "v"}));
  check_near(own.at("mlp.scale").values(), expected({"gate", "up"}));
  check_near(own.at("down.scale").values(), expected({"down"}));
  for (float s : own.at("qk.scale").values()) CHECK(s == 1);
  block.options.learning.faithful = true;
  const BlockParameters paper = block.learned("w4a4", 0);
  check_near(paper.at("qkv.scale").values(), expected({"q"}));
  check_near(paper.at("mlp.scale").values(), expected({"up"}));
}

TEST_CASE("what learning executes is what the written block has") {
  struct Case {
    const char* scheme;
    bool transform, compensation, f16;
  };
  for (const ModelConfig& config : test::variant_configs()) {
    for (const Case& c : {Case{"w2*a8", true, true, false}, Case{"w2a16g64", false, false, false},
                          Case{"w3a8", true, false, true}, Case{"w4a4q4kv4", true, false, false},
                          Case{"w8a16", false, false, false}, Case{"w3sa8t", true, true, false}}) {
      const std::string scheme = c.scheme;
      CAPTURE(scheme);
      FirstBlock block(config);
      block.options.scheme = Scheme::parse(c.scheme);
      block.options.learning.epochs = 2;
      block.options.learning.transform = c.transform;
      BlockGraph graph(*block.file, config, FirstBlock::kTokens, block.runner->pool());
      BlockJob job = block.job();
      const Recipe recipe{.compensation = c.compensation, .f16 = c.f16};
      BlockLearner(job, graph, recipe).run();
      WorkFolder folder(block.options.output, "key", false);
      folder.write(0, job, *block.file);
      const BlockWeights& executed = job.weights();
      const BlockWeights w = load_finished(*folder.block(0), config, block.options.scheme, 0);
      CHECK(executed.attn_norm.weight == w.attn_norm.weight);
      CHECK(executed.attn_norm.bias == w.attn_norm.bias);
      CHECK(executed.mlp_norm.weight == w.mlp_norm.weight);
      CHECK(executed.mlp_norm.bias == w.mlp_norm.bias);
      CHECK(executed.router == w.router);
      REQUIRE(executed.linears.size() == w.linears.size());
      for (const auto& entry : w.linears) {
        const std::string& name = entry.first;
        CAPTURE(name);
        const LinearWeights &read = entry.second, &run = executed.linears.at(name);
        const auto a = read.weight.values(), b = run.weight.values();
        CHECK(std::equal(a.begin(), a.end(), b.begin(), b.end()));
        CHECK(read.bias == run.bias);
        CHECK(read.input_bits == run.input_bits);
        const auto original = block.weights.linears.at(name).weight.values();
        CHECK_FALSE(std::equal(a.begin(), a.end(), original.begin()));
      }
    }
  }
}
