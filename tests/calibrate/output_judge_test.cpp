/// What a block does to the model's predictions: the judge against the runtime's decoder on files
/// with that block in them, and auto's choice against the judge.

#include "tools/calibrate/methods/output_judge.h"

#include <cmath>

#include <doctest/doctest.h>

#include "runtime/decoder.h"
#include "tests/calibrate/first_block.h"
#include "tests/variants.h"
#include "tools/calibrate/methods/block_search.h"
#include "tools/calibrate/methods/method.h"
#include "tools/eval/logits.h"

using namespace oq;
using namespace oq::calibrate;
using test::FirstBlock;

namespace {

constexpr int64_t kWindows = 9, kHeldOut = 2;

std::shared_ptr<const File> another_model(const test::TempDir& dir, const ModelConfig& config) {
  test::TinyOq tiny;
  tiny.config = config;
  tiny.seed = 2;
  return test::make_tiny_oq(dir / "other.oq", tiny);
}

/// `model` with the first `blocks` of `other`.
std::shared_ptr<const File> mixed(const File& model, const File& other, int64_t blocks) {
  const auto path = model.path().parent_path() / fmt::format("mixed{}.oq", blocks);
  Writer out(path, model.tensors().size());
  out.metadata = model.metadata();
  for (const TensorInfo& t : model.tensors()) {
    bool theirs = false;
    for (int64_t b = 0; b < blocks; ++b) {
      theirs = theirs || t.name.rfind(fmt::format("blocks.{}.", b), 0) == 0;
    }
    out.add({.name = t.name, .kind = t.kind, .rows = t.rows, .cols = t.cols},
            theirs ? other.data(other.tensor(t.name)) : model.data(t));
  }
  out.finish();
  return File::open(path);
}

/// The divergence of each token's prediction, by two decoders, over some windows.
std::vector<double> divergence_of(const std::shared_ptr<const File>& expected,
                                  const std::shared_ptr<const File>& found,
                                  std::span<const std::vector<int32_t>> windows) {
  std::vector<double> result;
  for (const std::vector<int32_t>& window : windows) {
    Decoder p(expected, make_cpu_backend(1), {.context = 32, .exact = true});
    Decoder q(found, make_cpu_backend(1), {.context = 32, .exact = true});
    for (const int32_t token : window) {
      const auto reference = p.feed({&token, 1});
      result.push_back(kl_divergence(reference, q.feed({&token, 1})));
    }
  }
  return result;
}

void check_same(const std::vector<double>& found, const std::vector<double>& expected) {
  REQUIRE(found.size() == expected.size());
  double sum = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    CHECK(found[i] == doctest::Approx(expected[i]).epsilon(1e-3));
    sum += expected[i];
  }
  CHECK(sum > 0.1);
}

void advance(FirstBlock& block, HiddenStates& states, const BlockWeights& by) {
  for (int64_t w = 0; w < states.windows(); ++w) {
    block.runner->forward(by, {}, states.window(w).data(), FirstBlock::kTokens);
  }
}

}  // namespace

TEST_CASE("the divergence with other blocks in the first blocks' places is the decoder's") {
  for (const ModelConfig& config : test::variant_configs()) {
    CAPTURE(config.experts);
    CAPTURE(config.embedding_width);
    FirstBlock block(config, kWindows);
    const auto other = another_model(block.dir, config);
    const auto load = [&](const File& file, int64_t b) {
      return BlockWeights::load(file, config, b);
    };
    const std::span held_out = std::span(block.windows).last(kHeldOut);
    OutputJudge judge(*block.runner);
    BlockJob first = block.job();
    first.hold_out(kHeldOut);
    const std::vector<double> with_first = judge.divergence(first, load(*other, 0));
    check_same(with_first, divergence_of(block.file, mixed(*block.file, *other, 1), held_out));
    for (const double d : judge.divergence(first, block.weights)) CHECK(d < 1e-6);
    const auto d = judge.compare(first, load(*other, 0), block.weights);
    double mean = 0, squares = 0;
    for (const double v : with_first) mean -= v / double(with_first.size());
    for (const double v : with_first) squares += (v + mean) * (v + mean);
    CHECK(d.mean() == doctest::Approx(mean).epsilon(1e-4));
    const auto n = double(with_first.size());
    CHECK(d.standard_error() == doctest::Approx(std::sqrt(squares / n / (n - 1))).epsilon(1e-4));

    // The second block behind another first one: full precision is known already.
    advance(block, *block.hidden, load(*other, 0));
    advance(block, *block.targets, load(*block.file, 1));
    BlockJob second(*block.runner, *block.hidden, block.options, block.observer, 1,
                    load(*block.file, 1), {.targets = block.targets.get()});
    second.hold_out(kHeldOut);
    check_same(judge.divergence(second, load(*other, 1)),
               divergence_of(block.file, mixed(*block.file, *other, 2), held_out));
  }
}

TEST_CASE("auto leaves learned codes only for what brings predictions closer to full precision") {
  int left = 0, kept = 0;
  for (const char* scheme : {"w3a16", "w2a16g64", "w3a8", "w4a4q4kv4", "w2*a8"}) {
    CAPTURE(scheme);
    FirstBlock block(test::tiny_config(), kWindows);
    Options& o = block.options;
    o.scheme = Scheme::parse(scheme);
    o.learning.transform = o.scheme.quantizes_activations();
    o.learning.epochs = 2;
    const auto made_by = [&](const char* method) {
      o.method = method;
      BlockJob job = block.job();
      make_method(o)->quantize(job);
      return job.weights();
    };
    const bool abq = o.scheme.activation_bits < 16 || o.scheme.five_levels;
    const BlockWeights learned = made_by(abq ? "abq" : "omniquant");
    const BlockWeights together = made_by("auto");
    bool same = true;
    for (const auto& [name, l] : learned.linears) {
      const auto a = l.weight.values(), b = together.linears.at(name).weight.values();
      same = same && std::equal(a.begin(), a.end(), b.begin(), b.end());
    }
    (same ? kept : left) += 1;
    if (same) continue;
    BlockJob job = block.job();
    job.hold_out(held_out_windows(kWindows));
    const auto d = OutputJudge(*block.runner).compare(job, learned, together);
    CHECK(d.mean() < -d.standard_error());
  }
  CHECK(left > 0);
  CHECK(kept > 0);
}
