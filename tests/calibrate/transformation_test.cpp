/// Equivalent transformations: that they are some, for every pair and variant, and their gradients.

#include "tools/calibrate/learn/transformation.h"

#include <cmath>
#include <random>

#include <doctest/doctest.h>

#include "tests/support.h"
#include "tests/tiny_oq.h"
#include "tests/variants.h"
#include "tools/calibrate/learn/block_graph.h"

using namespace oq;
using namespace oq::calibrate;
using test::TempDir;

namespace {

constexpr int64_t kTokens = 40;

struct Problem {
  TempDir dir;
  std::shared_ptr<const File> file;
  BlockWeights weights;
  ThreadPool pool{2};
  BlockGraph graph;
  std::mt19937 rng{3};
  std::vector<float> x, weigh;

  explicit Problem(const ModelConfig& c)
      : file(make(dir, c)),
        weights(BlockWeights::load(*file, c, 0)),
        graph(*file, c, kTokens, pool),
        x(normals(size_t(kTokens * c.hidden), 1)),
        weigh(normals(x.size(), 1)) {
    for (auto& entry : weights.linears) {
      for (float& v : entry.second.weight.values()) v *= 0.4f;  // no saturated softmax
    }
  }

  static std::shared_ptr<const File> make(const TempDir& dir, const ModelConfig& c) {
    test::TinyOq tiny;
    tiny.config = c;
    return test::make_tiny_oq(dir / "m.oq", tiny);
  }

  std::vector<float> normals(size_t n, float size) {
    std::normal_distribution<float> normal(0, size);
    std::vector<float> v(n);
    for (float& value : v) value = normal(rng);
    return v;
  }

  std::vector<float> forward(const BlockWeights& w) {
    std::vector<float> y(x.size());
    graph.forward(w, {}, x.data(), kTokens, y.data());
    return y;
  }

  void randomize(Pair& p) {
    for (float& s : p.scale) s = std::exp(normals(1, 0.7f)[0]);
    for (float& d : p.shift) d = normals(1, 0.5f)[0];
  }
};

double worst(std::span<const float> a, std::span<const float> b) {
  double w = 0;
  for (size_t i = 0; i < a.size(); ++i) w = std::max(w, std::fabs(double(a[i]) - double(b[i])));
  return w;
}

double size_of(std::span<const float> a) { return worst(a, std::vector<float>(a.size())); }

/// Whether a fold changed any linear's weights at all: by more than 0.01 somewhere.
bool differs(const BlockWeights& w, const BlockWeights& folded) {
  for (const auto& entry : w.linears) {
    const LinearWeights& other = folded.linears.at(entry.first);
    if (worst(entry.second.weight.values(), other.weight.values()) > 0.01) return true;
  }
  return false;
}

/// The variants, and what transformations alone have to tell apart: RoPE behind biases of q, k and
/// v (Qwen2); as many KV heads as heads under RoPE (LLaMA-2-7B); linears with biases on both sides
/// of one norm, which take a shift (Falcon-RW's biases in Falcon-7B's block).
std::vector<ModelConfig> configs() {
  std::vector<ModelConfig> all = test::variant_configs();
  ModelConfig qwen = test::tiny_config(), llama = qwen, falcon = all[2];
  qwen.qkv_bias = true;
  llama.kv_heads = llama.heads;
  falcon.qkv_bias = falcon.o_bias = falcon.mlp_bias = true;
  all.insert(all.end(), {qwen, llama, falcon});
  return all;
}

std::vector<std::string> names(const Transformation& t) {
  std::vector<std::string> names;
  for (const Pair& p : t.pairs()) names.push_back(p.name);
  return names;
}

}  // namespace

TEST_CASE("every pair leaves what a block computes as it is, alone and with all others") {
  int shifted = 0;
  for (const ModelConfig& config : configs()) {
    Problem p(config);
    const std::vector<float> truth = p.forward(p.weights);
    Transformation all(config, p.weights, {.shifts = true});
    const size_t pairs = all.pairs().size();
    for (size_t i = 0; i <= pairs; ++i) {
      Transformation t(config, p.weights, {.shifts = true});
      for (size_t k = 0; k < pairs; ++k) {
        if (i == k || i == pairs) p.randomize(t.pairs()[k]);
        if (i == k && !t.pairs()[k].shift.empty()) ++shifted;
      }
      const std::string name = i < pairs ? t.pairs()[i].name : "all";
      CAPTURE(name);
      BlockWeights folded = p.weights;
      t.fold(p.pool, p.weights, folded);
      CHECK(differs(p.weights, folded));
      CHECK(worst(p.forward(folded), truth) < 1e-5 * size_of(truth));
    }
  }
  // OPT's qkv, mlp and o, the o of OPT-350m, and qkv and o of Falcon with biases.
  CHECK(shifted == 6);
}

TEST_CASE("which pairs there are follows from the config") {
  using Names = std::vector<std::string>;
  const auto all = configs();
  const auto pairs = [&](size_t i, Transformation::Kinds kinds) {
    Problem p(all[i]);
    return names(Transformation(all[i], p.weights, kinds));
  };
  CHECK(pairs(0, {}) == Names{"qkv", "mlp", "o", "qk", "down"});  // OPT: ReLU
  CHECK(pairs(1, {}) == Names{"o", "qk", "down"});                // norms after the sums
  CHECK(pairs(2, {}) == Names{"qkv", "o", "qk"});                 // Falcon-7B: one norm, GELU
  CHECK(pairs(3, {}) == Names{"qkv", "mlp", "o", "qk"});
  CHECK(pairs(5, {}).size() == 4 + 5);  // Mixtral: each expert's down
  CHECK(pairs(6, {}) == Names{"qkv", "mlp", "o", "qk", "down"});
  CHECK(pairs(6, {.down = false}) == Names{"qkv", "mlp", "o", "qk"});
  CHECK(pairs(7, {}) == Names{"qkv", "mlp", "o", "qk", "down"});
  CHECK(pairs(8, {}) == Names{"qkv", "mlp", "o", "qk", "down"});
  CHECK(pairs(9, {.shifts = true}) == Names{"qkv", "o", "qk"});
}

TEST_CASE("q and k scaled by dimension under RoPE change what a block computes") {
  const ModelConfig config = test::tiny_config();
  Problem p(config);
  Transformation t(config, p.weights, {.free_rope = true});
  for (Pair& pair : t.pairs()) {
    if (pair.name == "qk") p.randomize(pair);
  }
  BlockWeights folded = p.weights;
  t.fold(p.pool, p.weights, folded);
  const std::vector<float> truth = p.forward(p.weights);
  CHECK(worst(p.forward(folded), truth) > 1e-3 * size_of(truth));
}

TEST_CASE("gradients of scales and shifts are what finite differences say") {
  for (const ModelConfig& config : configs()) {
    Problem p(config);
    Transformation t(config, p.weights, {.shifts = true});
    for (Pair& pair : t.pairs()) p.randomize(pair);
    BlockWeights folded = p.weights;
    // With any gradient of the folded weights: an equivalence alone would have none to find. The
    // function is sum <w', r> over all of them.
    BlockWeights r = BlockGraph::of_shape(p.weights);
    const auto randomize = [&](std::vector<float>& v) { v = p.normals(v.size(), 1); };
    for (NormWeights* norm : {&r.attn_norm, &r.mlp_norm}) {
      randomize(norm->weight);
      randomize(norm->bias);
    }
    randomize(r.router);
    for (auto& entry : r.linears) {
      for (float& v : entry.second.weight.values()) v = p.normals(1, 1)[0];
      randomize(entry.second.bias);
    }
    const auto value = [&] {
      t.fold(p.pool, p.weights, folded);
      double sum = 0;
      const auto add = [&](std::span<const float> a, std::span<const float> b) {
        for (size_t i = 0; i < a.size(); ++i) sum += double(a[i]) * double(b[i]);
      };
      add(folded.attn_norm.weight, r.attn_norm.weight);
      add(folded.attn_norm.bias, r.attn_norm.bias);
      add(folded.mlp_norm.weight, r.mlp_norm.weight);
      add(folded.mlp_norm.bias, r.mlp_norm.bias);
      add(folded.router, r.router);
      for (const auto& entry : folded.linears) {
        add(entry.second.weight.values(), r.linears.at(entry.first).weight.values());
        add(entry.second.bias, r.linears.at(entry.first).bias);
      }
      return sum;
    };
    value();
    t.backward(p.pool, folded, r);
    for (size_t i = 0; i < t.pairs().size(); ++i) {
      for (const bool shift : {false, true}) {
        Pair& pair = t.pairs()[i];
        const Transformation::Gradient& g = t.gradients()[i];
        std::vector<float>& values = shift ? pair.shift : pair.scale;
        for (size_t k = 0; k < values.size(); k += 7) {
          const std::string name = pair.name;
          CAPTURE(name);
          CAPTURE(k);
          const float before = values[k], step = 1e-3f * (shift ? 1 : before);
          values[k] = before + step;
          const double up = value(), above = values[k];
          values[k] = before - step;
          const double down = value(), below = values[k];
          values[k] = before;
          const double expected = double(shift ? g.shift[k] : g.scale[k]);
          CHECK((up - down) / (above - below) == doctest::Approx(expected).epsilon(2e-3).scale(3));
        }
      }
    }
  }
}
