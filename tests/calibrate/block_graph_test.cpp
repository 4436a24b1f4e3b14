/// The block graph: forwards against BlockRunner, backwards against finite differences, for every
/// variant of a block.

#include "tools/calibrate/learn/block_graph.h"

#include <cmath>
#include <random>

#include <doctest/doctest.h>

#include "tests/calibrate/problem.h"
#include "tests/support.h"
#include "tests/tiny_oq.h"
#include "tests/variants.h"
#include "tools/calibrate/work_folder.h"

using namespace oq;
using namespace oq::calibrate;
using test::normals;
using test::TempDir;

namespace {

constexpr int64_t kTokens = 90;  ///< more than a tile of queries

double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double(a[i]) * double(b[i]);
  return sum;
}

double largest(std::span<const float> a) {
  double m = 0;
  for (float v : a) m = std::max(m, std::fabs(double(v)));
  return m;
}

/// A tiny model's first block, an input, and a direction to weigh its output by.
struct Problem {
  TempDir dir;
  std::shared_ptr<const File> file;
  ModelConfig config;
  Scheme scheme;
  Sight sight = Sight::causal;
  BlockWeights weights;
  std::vector<float> x, weigh;
  ThreadPool pool{2};
  BlockGraph graph;

  Problem(const ModelConfig& c, const char* scheme_text)
      : file(make(dir, c, scheme_text)),
        config(c),
        scheme(Scheme::parse(scheme_text)),
        weights(load_finished(*file, c, scheme, 0)),
        x(normals(size_t(kTokens * c.hidden), 5)),
        weigh(normals(x.size(), 6)),
        graph(*file, config, kTokens, pool) {}

  static std::shared_ptr<const File> make(const TempDir& dir, const ModelConfig& c,
                                          const char* scheme) {
    test::TinyOq tiny;
    tiny.config = c;
    tiny.scheme = scheme;
    tiny.weak_columns = 3;
    return test::make_tiny_oq(dir / "m.oq", tiny);
  }

  std::vector<float> forward(const BlockWeights& w, const std::vector<float>& in) {
    std::vector<float> y(in.size());
    graph.forward(w, scheme, in.data(), kTokens, y.data(), nullptr, sight);
    return y;
  }

  /// <weigh, block> along a direction of x or of one tensor, by central differences.
  double slope(std::span<float> tensor, const std::vector<float>& direction, float step) {
    const std::vector<float> before(tensor.begin(), tensor.end());
    double sides[2];
    for (int side = 0; side < 2; ++side) {
      for (size_t i = 0; i < tensor.size(); ++i) {
        tensor[i] = before[i] + (side == 0 ? step : -step) * direction[i];
      }
      sides[side] = dot(forward(weights, x), weigh);
    }
    std::copy(before.begin(), before.end(), tensor.begin());
    return (sides[0] - sides[1]) / (2 * double(step));
  }
};

/// Name, values and gradient of everything in a block.
template <class F>
void for_tensors(BlockWeights& w, BlockWeights& g, const F& f) {
  f("attn_norm", std::span(w.attn_norm.weight), std::span(g.attn_norm.weight));
  f("attn_norm.bias", std::span(w.attn_norm.bias), std::span(g.attn_norm.bias));
  f("mlp_norm", std::span(w.mlp_norm.weight), std::span(g.mlp_norm.weight));
  f("mlp_norm.bias", std::span(w.mlp_norm.bias), std::span(g.mlp_norm.bias));
  f("router", std::span(w.router), std::span(g.router));
  for (auto& [name, l] : w.linears) {
    f(name, l.weight.values(), g.linears.at(name).weight.values());
    f(name + ".bias", std::span(l.bias), std::span(g.linears.at(name).bias));
  }
}

double worst(std::span<const float> a, std::span<const float> b) {
  double w = 0;
  for (size_t i = 0; i < a.size(); ++i) w = std::max(w, std::fabs(double(a[i]) - double(b[i])));
  return w;
}

/// Holds the graph to BlockRunner.
void check_runner(Problem& p) {
  BlockRunner runner(p.file, kTokens, 2);
  std::vector<float> truth = p.x;
  runner.forward(p.weights, p.scheme, truth.data(), kTokens, {}, p.sight);
  const std::vector<float> y = p.forward(p.weights, p.x);
  double sum = 0;
  for (size_t i = 0; i < y.size(); ++i) sum += std::fabs(double(y[i]) - double(truth[i]));
  // A rounding that falls the other way moves an activation by a code; that is rare.
  const bool rounds = p.scheme != Scheme();
  CHECK(worst(y, truth) < (rounds ? 0.2 : 1e-5) * largest(truth));
  CHECK(sum / double(y.size()) < (rounds ? 1e-3 : 1e-6) * largest(truth));
}

/// q, k and v are 0 from row `rows` on and above 0 before it; what o reads of the rest counts for
/// nothing.
void keep_first_head(BlockWeights& w, int64_t rows) {
  for (const char* name : {"q", "k", "v"}) {
    LinearWeights& l = w.linears.at(name);
    for (int64_t r = 0; r < l.out(); ++r) {
      for (float& v : l.weight.row(r)) v *= r < rows ? 0.1f : 0.0f;
      l.bias[size_t(r)] = r < rows ? l.bias[size_t(r)] + 3 : 0.0f;
    }
  }
  Matrix& o = w.linears.at("o").weight;
  for (int64_t r = 0; r < o.rows(); ++r) {
    for (float& v : o.row(r).subspan(size_t(rows))) v = 0;
  }
}

}  // namespace

TEST_CASE("the graph computes what BlockRunner does, for every variant and quantization") {
  for (const ModelConfig& config : test::variant_configs()) {
    for (const char* scheme : {"w16a16", "w16a6", "w4a8", "w3a8t", "w3a16q8kv8", "w3a16q3kv3"}) {
      CAPTURE(scheme);
      Problem p(config, scheme);
      check_runner(p);
      p.sight = Sight::alone;
      check_runner(p);
    }
    for (const char* scheme : {"w3a16q8kv8", "w3a16q4kv4"}) {
      CAPTURE(scheme);
      Problem p(config, scheme);
      p.scheme.heads_share_range = true;
      check_runner(p);
    }
  }
}

TEST_CASE("one range over all heads passes gradients as it does over one wide head") {
  // Only the first head holds anything, all of it above 0, so that the range of all heads is not
  // its own: the zeros of the others are in it. In one wide head the zeros are of the same head.
  ModelConfig narrow = test::variant_configs()[0];  // OPT's
  narrow.heads = narrow.kv_heads = 4;
  ModelConfig wide = narrow;
  wide.heads = wide.kv_heads = 1;
  wide.head_dim = 4 * narrow.head_dim;
  for (const char* scheme : {"w16a16q4kv4", "w16a16q8kv8", "w16a16q3", "w16a16kv3"}) {
    CAPTURE(scheme);
    Problem a(narrow, scheme), b(wide, scheme);
    a.scheme.heads_share_range = true;
    keep_first_head(a.weights, narrow.head_dim);
    keep_first_head(b.weights, narrow.head_dim);
    LinearWeights& q = b.weights.linears.at("q");  // whose scores are divided by twice as much
    for (float& v : q.weight.values()) v *= 2;
    for (float& v : q.bias) v *= 2;
    const std::vector<float> y = a.forward(a.weights, a.x), truth = b.forward(b.weights, b.x);
    CHECK(worst(y, truth) < 1e-5 * largest(truth));
    BlockWeights g = BlockGraph::of_shape(a.weights), g_truth = g;
    std::vector<float> dx(a.x.size()), dx_truth = dx;
    a.graph.backward(a.weights, a.weigh.data(), g, dx.data());
    b.graph.backward(b.weights, b.weigh.data(), g_truth, dx_truth.data());
    for (float& v : g_truth.linears.at("q").weight.values()) v *= 2;
    for (float& v : g_truth.linears.at("q").bias) v *= 2;
    const double whole = largest(g_truth.linears.at("up").weight.values());
    CHECK(worst(dx, dx_truth) < 2e-6 * whole);
    for_tensors(g, g_truth, [&](const std::string& name, std::span<float> x, std::span<float> z) {
      CAPTURE(name);
      CHECK(worst(x, z) < 2e-6 * whole);  // what q and k get is small: sums that all but cancel
    });
    // What is held to here would show ranges that each head has for itself.
    a.scheme.heads_share_range = false;
    CHECK(worst(a.forward(a.weights, a.x), truth) > 1e-3 * largest(truth));
  }
}

TEST_CASE("gradients of a block are what finite differences say, for every variant") {
  const auto variants = test::variant_configs();
  for (size_t i = 0; i < 2 * variants.size(); ++i) {
    const ModelConfig& config = variants[i / 2];
    CAPTURE(i);
    Problem p(config, "w16a16");
    if (i % 2 == 1) p.sight = Sight::alone;
    for (auto& [name, l] : p.weights.linears) {  // no saturated softmax, where differences are 0
      for (float& v : l.weight.values()) v *= 0.4f;
    }
    if (config.activation == Activation::relu) {  // on or off, far from the kink
      std::vector<float>& bias = p.weights.linears.at("up").bias;
      for (size_t i = 0; i < bias.size(); ++i) bias[i] = i % 3 == 0 ? -6.0f : 6.0f;
    }
    BlockWeights g = BlockGraph::of_shape(p.weights);
    std::vector<float> dx(p.x.size());
    p.forward(p.weights, p.x);
    p.graph.backward(p.weights, p.weigh.data(), g, dx.data());
    const double whole = std::sqrt(dot(dx, dx));
    const auto check = [&](const std::string& name, std::span<float> tensor,
                           std::span<float> gradient) {
      if (tensor.empty()) return;
      CAPTURE(name);
      const double length = std::sqrt(dot(gradient, gradient));
      // Softmax does not see a bias of k that is the same at every position, nor anything of
      // scores where there is one alone.
      const bool scores = name[0] == 'q' || name[0] == 'k';
      const bool none = p.sight == Sight::alone
                            ? scores
                            : name == "k.bias" && config.positions != PositionKind::rope;
      CHECK((length < 1e-4 * whole) == none);
      if (none) return;
      // Half along the gradient, where the slope is large against rounding, half anywhere.
      std::vector<float> direction =
          normals(tensor.size(), 9, 0, 1.0f / std::sqrt(float(tensor.size())));
      for (size_t i = 0; i < direction.size(); ++i) direction[i] += float(gradient[i] / length);
      // A router may choose otherwise after a larger step, of its inputs too.
      const bool routes = name == "router" || (config.experts > 0 && p.sight == Sight::alone);
      CHECK(p.slope(tensor, direction, routes ? 1e-3f : 1e-2f) ==
            doctest::Approx(dot(gradient, direction)).epsilon(3e-3));
    };
    check("x", p.x, dx);
    for_tensors(p.weights, g, check);
  }
}

TEST_CASE("an attention map has rows of 1, and its gradient is what finite differences say") {
  for (const ModelConfig& config : test::variant_configs()) {
    Problem p(config, "w16a16");
    for (auto& entry : p.weights.linears) {
      for (float& v : entry.second.weight.values()) v *= 0.4f;
    }
    std::vector<float> map(kTokens * kTokens), y(p.x.size()), dx(p.x.size());
    const std::vector<float> weigh = normals(map.size(), 11), none(p.x.size());
    const auto value = [&] {
      p.graph.forward(p.weights, p.scheme, p.x.data(), kTokens, y.data(), map.data());
      return dot(map, weigh);
    };
    value();
    CHECK(y == p.forward(p.weights, p.x));
    for (int64_t t = 0; t < kTokens; ++t) {
      const auto row = std::span(map).subspan(size_t(t * kTokens), kTokens);
      CHECK(dot(row, std::vector<float>(kTokens, 1.0f)) == doctest::Approx(1).epsilon(1e-5));
      CHECK(largest(row.subspan(size_t(t) + 1)) == 0);
    }
    BlockWeights g = BlockGraph::of_shape(p.weights);
    value();
    p.graph.backward(p.weights, none.data(), g, dx.data(), weigh.data());
    for (const char* name : {"q", "k"}) {
      CAPTURE(name);
      const std::span<float> tensor = p.weights.linears.at(name).weight.values();
      const std::span<float> gradient = g.linears.at(name).weight.values();
      const std::vector<float> before(tensor.begin(), tensor.end());
      const double length = std::sqrt(dot(gradient, gradient));
      double sides[2];
      for (int side = 0; side < 2; ++side) {
        for (size_t i = 0; i < tensor.size(); ++i) {
          tensor[i] = before[i] + (side == 0 ? 1e-2f : -1e-2f) * gradient[i] / float(length);
        }
        sides[side] = value();
      }
      std::copy(before.begin(), before.end(), tensor.begin());
      CHECK((sides[0] - sides[1]) / 2e-2 == doctest::Approx(length).epsilon(3e-3));
    }
  }
}

TEST_CASE("without dx, linears get the same gradients") {
  for (const ModelConfig& config : test::variant_configs()) {
    Problem p(config, "w4a8q6kv8");
    BlockWeights with = BlockGraph::of_shape(p.weights), without = with;
    std::vector<float> dx(p.x.size());
    p.forward(p.weights, p.x);
    p.graph.backward(p.weights, p.weigh.data(), with, dx.data());
    p.forward(p.weights, p.x);
    p.graph.backward(p.weights, p.weigh.data(), without, nullptr);
    for (const auto& entry : with.linears) {
      const std::string& name = entry.first;
      CAPTURE(name);
      const std::span<const float> a = entry.second.weight.values();
      const std::span<const float> b = without.linears.at(name).weight.values();
      CHECK(std::equal(a.begin(), a.end(), b.begin()));
      CHECK(largest(a) > 0);
    }
  }
}

TEST_CASE("the number of threads changes nothing, forwards or backwards") {
  for (const ModelConfig& config : test::variant_configs()) {
    Problem p(config, "w4a8q6kv8");
    ThreadPool one(1);
    BlockGraph other(*p.file, config, kTokens, one);
    BlockWeights a = BlockGraph::of_shape(p.weights), b = a;
    std::vector<float> dx(p.x.size()), dx_other(p.x.size()), y(p.x.size());
    const std::vector<float> truth = p.forward(p.weights, p.x);
    p.graph.backward(p.weights, p.weigh.data(), a, dx.data());
    other.forward(p.weights, p.scheme, p.x.data(), kTokens, y.data());
    other.backward(p.weights, p.weigh.data(), b, dx_other.data());
    CHECK(y == truth);
    CHECK(dx == dx_other);
    for_tensors(a, b, [](const std::string& name, std::span<float> x, std::span<float> z) {
      CAPTURE(name);
      CHECK(std::equal(x.begin(), x.end(), z.begin()));
    });
  }
}
