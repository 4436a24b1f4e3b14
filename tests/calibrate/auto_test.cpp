/// --method auto: held to every single method, and to its budget.

#include <cmath>
#include <utility>

#include <doctest/doctest.h>

#include "runtime/decoder.h"
#include "tests/calibrate/first_block.h"
#include "tests/calibrate/problem.h"
#include "tests/calibrate/small_run.h"
#include "tests/tiny_oq.h"
#include "tests/variants.h"
#include "tools/calibrate/block.h"
#include "tools/calibrate/calibration_text.h"
#include "tools/calibrate/hidden_states.h"
#include "tools/calibrate/learn/loss.h"
#include "tools/calibrate/methods/block_search.h"
#include "tools/calibrate/methods/method.h"
#include "tools/calibrate/methods/output_judge.h"
#include "tools/calibrate/preflight.h"
#include "tools/calibrate/solver/gptq.h"
#include "tools/calibrate/work_folder.h"

using namespace oq;
using test::TempDir;
namespace fs = std::filesystem;

namespace {

calibrate::Options options_of(const TempDir& dir, const char* method, const char* scheme) {
  calibrate::Options o = test::small_run(dir / "in.oq", dir / "out.oq", method, scheme);
  o.tuning = calibrate::Tuning::mse;
  o.learning.epochs = 3;
  o.learning.transform = true;
  return o;
}

/// The error of a one-block model's block on its calibration text, once `o` has been run.
double block_error(const calibrate::Options& o) {
  calibrate::calibrate(o);
  const auto model = File::open(o.input);
  const auto text = calibrate::calibration_text(model, o, {});
  calibrate::BlockRunner runner(model, o.window, o.threads);
  const auto size = size_t(o.window * runner.config().hidden);
  std::vector<float> x(text.windows.size() * size), unused(size);
  runner.embed(text.windows, x.data());
  const auto& config = runner.config();
  const auto before = calibrate::BlockWeights::load(*model, config, 0);
  const auto after = calibrate::load_finished(*File::open(o.output), config, o.scheme, 0);
  double sum = 0;
  for (size_t w = 0; w < text.windows.size(); ++w) {
    std::vector<float> target(x.begin() + ptrdiff_t(w * size),
                              x.begin() + ptrdiff_t((w + 1) * size));
    std::vector<float> y = target;
    runner.forward(before, {}, target.data(), o.window);
    runner.forward(after, o.scheme, y.data(), o.window);
    sum += calibrate::relative_error(y, target, config.hidden, 1, unused);
  }
  return sum / double(text.windows.size());
}

void make_one_block(const TempDir& dir, ModelConfig config) {
  test::TinyOq tiny;
  tiny.config = std::move(config);
  tiny.config.blocks = 1;
  test::make_tiny_oq(dir / "in.oq", tiny);
}

/// Whether auto is better than the best single method by a margin; it is never worse.
bool beats_single_methods(const TempDir& dir, const std::string& scheme) {
  CAPTURE(scheme);
  const double together = block_error(options_of(dir, "auto", scheme.c_str()));
  Decoder d(File::open(dir / "out.oq"), make_cpu_backend(1), {.context = 16});
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5};
  for (float v : d.feed(tokens)) REQUIRE(std::isfinite(v));
  double least = INFINITY;
  for (const char* method : {"rtn", "gptq", "awrq", "omniquant"}) {
    const std::string single = method;
    if (single == "awrq" && scheme == "w3a16g64") continue;
    CAPTURE(single);
    const double alone = block_error(options_of(dir, method, scheme.c_str()));
    CHECK(together <= alone);  // the same bytes where it is that method, so without a margin
    least = std::min(least, alone);
  }
  return together < 0.98 * least;
}

}  // namespace

TEST_CASE("no single method leaves a block with less error than all together, in any variant") {
  const TempDir dir;
  const std::vector<std::string> schemes = {"w3a16g64", "w4a6q6kv6", "w2*a8"};
  const auto variants = test::variant_configs();
  int better = 0, cases = 0;
  for (size_t i = 0; i < variants.size(); ++i) {
    make_one_block(dir, variants[i]);
    for (size_t s = 0; s < schemes.size(); ++s) {
      // Every variant with one scheme in turn, the last with all of them.
      if (i % schemes.size() != s && i + 1 < variants.size()) continue;
      CAPTURE(i);
      ++cases;
      better += beats_single_methods(dir, schemes[s]) ? 1 : 0;
    }
  }
  CHECK(cases == 9);
  CHECK(better * 2 > cases);  // and it is for something
}

TEST_CASE("auto chooses by windows that errors were not made up for on") {
  CHECK(calibrate::held_out_windows(7) == 0);
  CHECK(calibrate::held_out_windows(16) == 2);
  test::FirstBlock block(test::tiny_config(), 8);
  block.options.method = "auto";
  block.options.scheme = Scheme::parse("w3a8");
  block.options.learning.transform = true;
  block.options.learning.epochs = 2;
  calibrate::BlockJob job = block.job();
  calibrate::make_method(block.options)->quantize(job);
  const std::span<const float> target = block.targets->window(7);
  std::vector<float> y(block.hidden->window(7).begin(), block.hidden->window(7).end());
  std::vector<float> unused(y.size());
  block.runner->forward(job.weights(), block.options.scheme, y.data(), test::FirstBlock::kTokens);
  const double error =
      calibrate::relative_error(y, target, block.runner->config().hidden, 1, unused);
  REQUIRE(job.output_error().has_value());
  CHECK(*job.output_error() == doctest::Approx(error).epsilon(1e-5));
}

TEST_CASE("what auto's learning, its compensation and its choice see of the windows") {
  test::FirstBlock block(test::tiny_config(), 8);
  block.options.method = "auto";
  block.options.scheme = Scheme::parse("w3a16");
  block.options.tuning = calibrate::Tuning::minmax;
  const auto says = [&](int64_t epochs) -> std::string {
    block.options.learning.epochs = epochs;
    calibrate::BlockJob job = block.job();
    try {
      calibrate::make_method(block.options)->quantize(job);
    } catch (const Error& e) {
      return e.what();
    }
    return "done";
  };
  const auto with_nan = [&](calibrate::HiddenStates& in, int64_t window, int64_t epochs) {
    float& value = in.window(window)[5];
    const float kept = std::exchange(value, NAN);
    const std::string text = says(epochs);
    value = kept;
    return text;
  };
  const auto contains = [](const std::string& text, const char* part) {
    CAPTURE(text);
    return text.find(part) != std::string::npos;
  };
  const char* of_choice = "every way to quantize the block";
  CHECK(says(0) == "done");
  CHECK(contains(with_nan(*block.targets, 7, 0), of_choice));
  CHECK(with_nan(*block.targets, 6, 0) == "done");
  CHECK(contains(with_nan(*block.hidden, 7, 0), of_choice));
  CHECK(contains(with_nan(*block.hidden, 6, 0), "input of blocks.0.q, window 6"));
  for (const int64_t window : {6, 7}) {
    CHECK(contains(with_nan(*block.targets, window, 1), "the loss is not finite"));
  }
}

TEST_CASE("weak columns are taken where they help") {
  const TempDir dir;
  make_one_block(dir, test::tiny_config());
  auto o = options_of(dir, "auto", "w2a16");
  const double without = block_error(o);
  o.weak_columns = 6;
  CHECK(block_error(o) < without);
  o.weak_bf16 = true;
  CHECK(block_error(o) < without);
  o.weak_bf16 = false;
  const double owq = [&] {
    auto single = options_of(dir, "owq", "w2a16");
    single.weak_columns = 6;
    return block_error(single);
  }();
  CHECK(block_error(o) <= owq * 1.00001);
}

TEST_CASE("auto learns with the weak columns that were asked for") {
  test::FirstBlock block(test::tiny_config(), 8);
  calibrate::Options& o = block.options;
  o.method = "auto";
  o.scheme = Scheme::parse("w2a16");
  o.learning.epochs = 2;
  o.learning.transform = true;
  o.weak_columns = 3;
  calibrate::BlockJob job = block.job();
  calibrate::make_method(o)->quantize(job);
  std::map<std::string, calibrate::Form> forms;
  for (const auto& [name, done] : job.done()) {
    const calibrate::QuantizedLinear& q = done.linear;
    CHECK(q.weak.size() == 3);
    CHECK(job.weights().linears.at(name).weak == q.weak);
    forms[name] = {.bits = q.packing.bits, .weak = q.weak};
  }
  // Judged by predictions, they are what learning alone makes of these columns.
  const auto learned = block.learn("w2a16", 2, {.forms = forms});
  int64_t same = 0;
  for (const auto& [name, l] : learned.weights.linears) {
    same += std::ranges::equal(l.weight.values(), job.weights().linears.at(name).weight.values());
  }
  CHECK(same > 0);
}

TEST_CASE("mixed widths keep to their bytes and beat one width of as many") {
  const TempDir dir;
  for (const ModelConfig& config : {test::variant_configs()[5], test::tiny_config()}) {
    make_one_block(dir, config);
    const double three = block_error(options_of(dir, "gptq", "w3a16g64"));
    const auto file = File::open(dir / "out.oq");
    const double bits = linear_bytes(*file, ModelConfig::load(*file)).bits_per_weight();
    double before = INFINITY;
    std::vector<double> targets = {bits - 0.2, bits, bits + 0.3};
    if (config.experts > 0) targets = {bits};  // which have many linears
    for (const double target : targets) {
      CAPTURE(target);
      auto o = options_of(dir, "auto", "w3a16g64");
      o.target_bits = target;
      const double error = block_error(o);
      const auto mixed = File::open(dir / "out.oq");
      const LinearBytes used = linear_bytes(*mixed, ModelConfig::load(*mixed));
      CHECK(used.bytes <= uint64_t(target * double(used.weights) / 8));
      CHECK(used.bits_per_weight() > target - 0.5);  // what there is is spent
      if (target >= bits) CHECK(error <= three * 1.00001);
      CHECK(error < before);
      before = error;
      std::vector<int> widths;
      for (const TensorInfo& t : mixed->tensors()) {
        if (t.kind == Kind::packed && t.name.rfind("blocks.", 0) == 0)
          widths.push_back(t.packing.bits);
      }
      CHECK(*std::max_element(widths.begin(), widths.end()) >
            *std::min_element(widths.begin(), widths.end()));
      Decoder d(mixed, make_cpu_backend(1), {.context = 16});
      const std::vector<int32_t> tokens = {1, 2, 3, 4, 5};
      for (float v : d.feed(tokens)) REQUIRE(std::isfinite(v));
    }
  }
}

TEST_CASE("a budget that is too small is found before the work, with the least that is not") {
  const TempDir dir;
  for (const char* scheme : {"w3a16g64", "w2*a8"}) {
    make_one_block(dir, test::tiny_config());
    auto o = options_of(dir, "auto", scheme);
    o.text = "none.txt";  // which is not even looked for
    o.target_bits = 2;
    std::string says;
    try {
      calibrate::calibrate(o);
    } catch (const Error& e) {
      says = e.what();
    }
    CAPTURE(says);
    CHECK(says.find("--target-bits") != std::string::npos);
    const std::string expected = "expected ";
    const size_t at = says.find(expected);
    REQUIRE(at != std::string::npos);
    const double least = std::stod(says.substr(at + expected.size()));
    o.text = "self";
    o.target_bits = least - 0.01;
    CHECK_THROWS_WITH_AS(calibrate::calibrate(o), doctest::Contains("--target-bits"), Error);
    o.target_bits = least;
    calibrate::calibrate(o);
    const auto file = File::open(o.output);
    CHECK(linear_bytes(*file, ModelConfig::load(*file)).bits_per_weight() <= least);
  }
}

TEST_CASE("preflight counts the candidates that are kept") {
  const TempDir dir;
  make_one_block(dir, test::tiny_config());
  const auto file = File::open(dir / "in.oq");
  const ModelConfig config = ModelConfig::load(*file);
  struct Case {
    const char* scheme;
    double target;
    int64_t plain, learned, widths;
  };
  calibrate::Preflight before;
  for (const Case& c : {Case{"w3a16", 0, 2, 4, 1}, Case{"w3a8", 0, 3, 6, 1},
                        Case{"w3a16", 4, 4, 4, 4}, Case{"w3a8", 4, 5, 6, 4}}) {
    auto o = options_of(dir, "auto", c.scheme);
    o.window = 200;
    o.target_bits = c.target;
    const auto n = calibrate::auto_candidates(o);
    CHECK(n.plain == c.plain);
    CHECK(n.learned == c.learned);
    CHECK(n.widths == c.widths);
    const auto flight = calibrate::preflight(*file, config, o, o.windows);
    CHECK(flight.flops > before.flops);
    o.method = "omniquant";
    CHECK(flight.memory > calibrate::preflight(*file, config, o, o.windows).memory);
    before = flight;
  }
}

TEST_CASE("preflight counts what judging by the model's predictions takes") {
  const TempDir dir;
  ModelConfig config = test::tiny_config();
  calibrate::Options o;
  const auto flight = [&](int64_t vocab, int64_t windows) {
    config.vocab = vocab;
    make_one_block(dir, config);
    const auto file = File::open(dir / "in.oq");
    o = options_of(dir, "auto", "w3a16");
    o.learning.faithful = true;  // without a head to learn by
    return calibrate::preflight(*file, ModelConfig::load(*file), o, windows);
  };
  const auto few = flight(101, 8), many = flight(2001, 8);  // one window is held out
  const int64_t head = 1900 * config.hidden;
  const int64_t logits = 1900 * 2 * calibrate::HeadGraph::kTokens;
  CHECK(many.memory - few.memory == sizeof(float) * uint64_t(head + logits));
  // Full precision's logits and a block's, for each of the two blocks.
  CHECK(many.flops - few.flops == doctest::Approx(2 * 2 * 2.0 * double(head * o.window)));
  CHECK(flight(101, 7).memory == flight(2001, 7).memory);
  CHECK(flight(101, 7).flops == flight(2001, 7).flops);
  CHECK(many.last_block == 1);
  CHECK(calibrate::judging_passes(5, 7) == 0);
  CHECK(calibrate::judging_passes(5, 16) == doctest::Approx(2 * 4 / 16.0));
}

TEST_CASE("preflight counts attention maps and the second target") {
  const TempDir dir;
  make_one_block(dir, test::tiny_config());
  const auto file = File::open(dir / "in.oq");
  const ModelConfig config = ModelConfig::load(*file);
  auto o = options_of(dir, "abq", "w4a4q4kv4");
  constexpr int64_t kWindows = 1000;  // more than what works on one of them takes
  o.window = 64;
  const auto flight = [&] { return calibrate::preflight(*file, config, o, kWindows); };
  const auto plain = flight();
  o.learning.attention_share = 0.5;
  const auto maps = flight();
  // A token's row of the mean of heads.
  CHECK(maps.memory - plain.memory == calibrate::HiddenStates::bytes(kWindows, o.window, o.window));
  CHECK(maps.flops > plain.flops);
  o.learning.attention_share = 0;
  o.learning.aug_loss = true;
  const auto targets = flight();
  CHECK(targets.memory - plain.memory ==
        calibrate::HiddenStates::bytes(kWindows, o.window, config.hidden));
  CHECK(targets.flops > plain.flops);
}

TEST_CASE("what is kept of every token goes to disk by its own size") {
  const TempDir dir;
  const calibrate::HiddenStates inputs(4, 10, 8, 2000, dir.path());
  CHECK_FALSE(inputs.on_disk());
  CHECK_FALSE(inputs.others(10)->on_disk());
  const auto maps = inputs.others(20);
  CHECK(maps->on_disk());
  maps->window(3)[199] = 1;
  CHECK(maps->window(3).size() == 200);
}

TEST_CASE("a method's remedy names what it reads") {
  CHECK(calibrate::remedy("rtn") == "take a scheme with more bits");
  CHECK(calibrate::remedy("gptq") == "raise --damp, or take a scheme with more bits");
  CHECK(calibrate::remedy("abq") == "lower --lwc-lr and --let-lr, or take a scheme with more bits");
}

TEST_CASE("errors are made up for on grids that are given") {
  ThreadPool pool(2);
  const test::Problem p(24, 96, 5);
  const auto moments = p.moments(pool);
  calibrate::GptqOptions options{.grid = {.packing = {.bits = 3, .group = 32}}};
  const auto rounded = calibrate::round_to_nearest(pool, p.w, options.grid);
  options.grids_of = &rounded;
  const auto factor = calibrate::invert(pool, moments.hessian,
                                        calibrate::column_order(96, {}, diagonal(moments.hessian)));
  const auto q = calibrate::gptq(pool, p.w, factor, options).linear;
  for (size_t i = 0; i < q.grids.size(); ++i) {
    CHECK(q.grids[i].scale == rounded.grids[i].scale);
    CHECK(q.grids[i].zero == rounded.grids[i].zero);
  }
  const auto error = [&](const calibrate::QuantizedLinear& l) {
    return calibrate::relative_output_error(pool, p.w, l.dequantize(), moments.hessian);
  };
  CHECK(error(q) < 0.9 * error(rounded));
  options.grid.packing.bits = 4;
  CHECK_THROWS_WITH_AS(calibrate::gptq(pool, p.w, factor, options),
                       doctest::Contains("another linear"), Error);
}
