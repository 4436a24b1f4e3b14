/// oq-calibrate from end to end on tiny models.

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <map>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "runtime/decoder.h"
#include "tests/calibrate/small_run.h"
#include "tests/tiny_oq.h"
#include "tests/variants.h"
#include "tools/calibrate/block.h"
#include "tools/calibrate/calibration_text.h"
#include "tools/calibrate/learn/loss.h"
#include "tools/calibrate/report.h"
#include "tools/calibrate/work_folder.h"

using namespace oq;
using test::check_says;
using test::refusal;
using test::small_run;
using test::TempDir;
namespace fs = std::filesystem;

namespace {

std::string bytes_of(const fs::path& path) { return test::read_file(path); }

/// Of what a file computes with; its options are metadata.
std::vector<uint32_t> tensor_crcs(const fs::path& path) {
  const auto file = File::open(path);
  std::vector<uint32_t> crcs;
  for (const TensorInfo& t : file->tensors()) crcs.push_back(t.crc);
  return crcs;
}

}  // namespace

TEST_CASE("every method calibrates every variant, and the decoder runs the result") {
  const TempDir dir;
  for (const ModelConfig& config : test::variant_configs()) {
    test::TinyOq tiny;
    tiny.config = config;
    test::make_tiny_oq(dir / "in.oq", tiny);
    for (const auto& [method, scheme] :
         {std::pair("rtn", "w4a16g32"), std::pair("smoothquant", "w4a8"),
          std::pair("gptq", "w3a16g64"), std::pair("owq", "w3a16"), std::pair("awrq", "w4a8t"),
          std::pair("act-only", "w16a8"), std::pair("omniquant", "w3a16g64"),
          std::pair("omniquant", "w4a4q4kv4"), std::pair("omniquant", "w3sa8t"),
          std::pair("abq", "w2*a8"), std::pair("auto", "w3a16g64")}) {
      const auto o = small_run(dir / "in.oq", dir / "out.oq", method, scheme);
      CAPTURE(o.method);
      const auto result = calibrate::calibrate(o);
      const auto file = File::open(dir / "out.oq");
      file->verify();
      CHECK(file->metadata().get<std::string>("scheme") == scheme);
      CHECK(file->metadata().get<std::string>("calibration.method") == o.method);
      CHECK(fs::exists(dir / "out.oq.work") == false);
      Decoder d(file, make_cpu_backend(1), {.context = 16});
      const std::vector<int32_t> tokens = {1, 2, 3, 4, 5};
      for (float v : d.feed(tokens)) REQUIRE(std::isfinite(v));
      if (o.method == "act-only") continue;
      const TensorInfo& q = file->tensor("blocks.0.q");
      CHECK(q.kind == Kind::packed);
      CHECK(q.packing.five_levels == o.scheme.five_levels);
      CHECK(q.packing.weak_columns == (o.method == "owq" ? 4 : 0));
      for (const auto& l : result.linears) CHECK(l.weight_error < 0.6);
    }
  }
}

TEST_CASE("a stopped run that is resumed comes to the same bytes") {
  const TempDir dir;
  test::TinyOq tiny;
  tiny.config.blocks = 4;
  test::make_tiny_oq(dir / "in.oq", tiny);
  for (const auto& [method, scheme] :
       {std::pair("gptq", "w3a16g64"), std::pair("awrq", "w4a8"), std::pair("omniquant", "w3a8"),
        std::pair("abq", "w2*a8"), std::pair("auto", "w3a8")}) {
    auto o = small_run(dir / "in.oq", dir / "whole.oq", method, scheme);
    calibrate::calibrate(o);
    fs::remove(dir / "resumed.oq");
    o.output = dir / "resumed.oq";
    struct Stop {};
    const auto stop_after_two = [](double, double, std::string_view what) {
      if (what == "block 2 of 4") throw Stop();
    };
    CHECK_THROWS_AS(calibrate::calibrate(o, {.progress = stop_after_two, .notice = {}}), Stop);
    CHECK(fs::exists(dir / "resumed.oq") == false);
    CHECK(fs::exists(dir / "resumed.oq.work/block-0001.oq"));

    auto other = o;  // other options must not go on with these blocks
    other.resume = true;
    other.damp = 0.02;
    CHECK(refusal(other).find("other options") != std::string::npos);

    o.resume = true;
    calibrate::calibrate(o);
    CHECK(bytes_of(dir / "resumed.oq") == bytes_of(dir / "whole.oq"));
    calibrate::calibrate(o);  // again, from nothing
    CHECK(bytes_of(dir / "resumed.oq") == bytes_of(dir / "whole.oq"));
  }
}

TEST_CASE("weak columns are where --layers has them, and nowhere else") {
  const TempDir dir;
  test::make_tiny_oq(dir / "in.oq");
  auto o = small_run(dir / "in.oq", dir / "out.oq", "owq", "w3a16");
  for (const char* layer : {"q", "k", "gate"}) {
    o.layers = {layer};
    for (const auto& l : calibrate::calibrate(o).linears) {
      CAPTURE(l.name);
      const bool chosen = l.name.ends_with(std::string(".") + layer);
      CHECK(l.weak_columns == (chosen ? 4 : 0));
      CHECK(File::open(o.output)->tensor(l.name).packing.weak_columns == l.weak_columns);
    }
  }
  o.layers = {"q", "query"};
  check_says(refusal(o), {"--layers", "expected down, gate, k, o, q, up, v", "found 'query'"});
}

TEST_CASE("a block may have hundreds of linears") {
  const TempDir dir;
  test::TinyOq tiny;
  tiny.config.blocks = 1;
  tiny.config.experts = 130;
  tiny.config.experts_used = 2;
  tiny.config.mlp = 32;
  test::make_tiny_oq(dir / "in.oq", tiny);
  const auto result =
      calibrate::calibrate(small_run(dir / "in.oq", dir / "out.oq", "rtn", "w4a16"));
  CHECK(result.linears.size() == 3 * 130 + 4);
}

TEST_CASE("the last block counts for as much as it works") {
  const TempDir dir;
  test::TinyOq tiny;
  tiny.config.blocks = 4;
  test::make_tiny_oq(dir / "in.oq", tiny);
  for (const bool faithful : {false, true}) {
    auto o = small_run(dir / "in.oq", dir / "out.oq", "omniquant", "w3a16");
    o.learning.faithful = faithful;  // then it learns as the others do
    std::map<std::string, double> at;
    double all = 0;
    const auto keep = [&](double done, double total, std::string_view what) {
      if (what.substr(0, 5) != "block") return;
      at[std::string(what)] = done;
      all = total;
    };
    calibrate::calibrate(o, {.progress = keep, .notice = {}});
    CHECK(at.at("block 3 of 4") == 3);
    CHECK(at.at("block 4 of 4") == all);
    CHECK((all == 4) == faithful);
  }
}

TEST_CASE("weak columns are stored in the type that was asked for") {
  const TempDir dir;
  test::make_tiny_oq(dir / "in.oq");
  auto o = small_run(dir / "in.oq", dir / "out.oq", "owq", "w3a16");
  const auto error_of = [&](bool bf16) {
    o.weak_bf16 = bf16;
    double sum = 0;
    for (const auto& l : calibrate::calibrate(o).linears) sum += l.output_error;
    CHECK(File::open(o.output)->tensor("blocks.1.down").packing.weak_bf16 == bf16);
    return sum;
  };
  const double f16 = error_of(false), bf16 = error_of(true);
  CHECK(f16 != bf16);
  CHECK(bf16 == doctest::Approx(f16).epsilon(0.02));
}

namespace {

/// Options of every method that learns, on a model of every variant.
void for_learners(const TempDir& dir, const char* scheme,
                  const std::function<void(calibrate::Options, const ModelConfig&)>& f) {
  for (const ModelConfig& config : test::variant_configs()) {
    test::TinyOq tiny;
    tiny.config = config;
    test::make_tiny_oq(dir / "in.oq", tiny);
    for (const char* method : {"omniquant", "abq"}) {
      CAPTURE(method);
      f(small_run(dir / "in.oq", dir / "a.oq", method, scheme), config);
    }
  }
}

}  // namespace

TEST_CASE("learning lowers the loss of every block, in every variant") {
  const TempDir dir;
  for_learners(dir, "w3a16", [](calibrate::Options o, const ModelConfig& config) {
    o.learning.epochs = 20;
    o.learning.clip_rate = 0.1;    // steps of 2 % of a range, against the noise of few weights
    o.learning.batch = o.windows;  // every step is one of the whole text
    const auto result = calibrate::calibrate(o);
    REQUIRE(result.losses.size() == size_t(config.blocks));
    for (const auto& losses : result.losses) {
      REQUIRE(losses.size() == 20);
      CHECK(losses.back() < losses.front());
    }
  });
}

TEST_CASE("a learned file computes what was learned, in batches or not, on one thread or two") {
  const TempDir dir;
  test::make_tiny_oq(dir / "in.oq");
  auto o = small_run(dir / "in.oq", dir / "a.oq", "omniquant", "w3a8q6kv6");
  o.learning.batch = 2;
  calibrate::calibrate(o);
  o.output = dir / "b.oq";
  o.threads = 1;
  calibrate::calibrate(o);
  CHECK(tensor_crcs(dir / "a.oq") == tensor_crcs(dir / "b.oq"));
  o.output = dir / "c.oq";
  o.learning.batch = 1;
  calibrate::calibrate(o);
  CHECK(tensor_crcs(dir / "a.oq") != tensor_crcs(dir / "c.oq"));
}

TEST_CASE("as the references do it is another result, which runs as well") {
  const TempDir dir;
  for_learners(dir, "w4a8", [&](calibrate::Options o, const ModelConfig&) {
    calibrate::calibrate(o);
    o.output = dir / "b.oq";
    o.learning.faithful = true;
    calibrate::calibrate(o);
    CHECK(tensor_crcs(dir / "a.oq") != tensor_crcs(dir / "b.oq"));
    Decoder d(File::open(dir / "b.oq"), make_cpu_backend(1), {.context = 16});
    const std::vector<int32_t> tokens = {1, 2, 3, 4, 5};
    for (float v : d.feed(tokens)) REQUIRE(std::isfinite(v));
  });
}

TEST_CASE(
    "OPT's q, k and v have one range over all heads where a run is faithful, and only there") {
  const TempDir dir;
  test::TinyOq opt, llama;
  opt.config = test::variant_configs()[0];
  opt.heads_share_range = true;  // what the input says of itself is not handed on
  const auto range = [&](const test::TinyOq& tiny, const char* method, const char* scheme,
                         bool faithful) {
    test::make_tiny_oq(dir / "in.oq", tiny);
    auto o = small_run(dir / "in.oq", dir / "out.oq", method, scheme);
    o.learning.epochs = 1;
    o.learning.faithful = faithful;
    calibrate::calibrate(o);
    return File::open(dir / "out.oq")->metadata().get_or<std::string>("attention.range", "none");
  };
  CHECK(range(opt, "omniquant", "w4a4q4kv4", true) == "token");
  CHECK(range(opt, "omniquant", "w4a16kv8", true) == "token");
  CHECK(range(opt, "abq", "w4a16q8", true) == "token");
  CHECK(range(opt, "omniquant", "w4a4q4kv4", false) == "none");
  CHECK(range(opt, "omniquant", "w4a4", true) == "none");  // nothing of theirs is quantized
  CHECK(range(llama, "omniquant", "w4a4q4kv4", true) == "none");
}

TEST_CASE("first tokens come before the windows of a text, which they are drawn from") {
  const TempDir dir;
  test::TinyOq opt;
  opt.config = test::variant_configs()[0];  // whose positions are learned
  const auto in = test::make_tiny_oq(dir / "in.oq", opt);
  auto o = small_run(dir / "in.oq", dir / "out.oq", "omniquant", "w4a8");
  const auto without = calibrate::calibration_text(in, o, {});
  o.learning.first_tokens = true;
  const auto with = calibrate::calibration_text(in, o, {});
  CHECK_FALSE(without.first_tokens);
  REQUIRE(with.first_tokens);
  CHECK(with.crc != without.crc);
  CHECK(calibrate::calibration_text(in, o, {}).windows == with.windows);
  REQUIRE(with.windows.size() == without.windows.size() + 1);
  CHECK(std::equal(without.windows.begin(), without.windows.end(), with.windows.begin() + 1));
  REQUIRE(int64_t(with.windows[0].size()) == o.window);
  for (const int32_t token : with.windows[0]) {
    CHECK(std::any_of(without.windows.begin(), without.windows.end(), [&](const auto& window) {
      return std::find(window.begin(), window.end(), token) != window.end();
    }));
  }
  o.method = "gptq";
  CHECK(calibrate::calibration_text(in, o, {}).windows == without.windows);
}

TEST_CASE("blocks learn from first tokens as such, behind others that were run with them") {
  const TempDir dir;
  test::TinyOq opt;
  opt.config = test::variant_configs()[0];
  opt.config.blocks = 3;
  const auto in = test::make_tiny_oq(dir / "in.oq", opt);
  auto o = small_run(dir / "in.oq", dir / "out.oq", "omniquant", "w4a8q4kv4");
  o.learning.first_tokens = true;
  o.learning.epochs = 1;
  o.learning.clip_rate = o.learning.transform_rate = 0;  // the loss is that of what is stored
  const auto losses = calibrate::calibrate(o).losses;
  const auto out = File::open(dir / "out.oq");
  const auto windows = calibrate::calibration_text(in, o, {}).windows;
  REQUIRE(windows.size() == 4);
  calibrate::BlockRunner runner(in, o.window, 2);
  const auto size = size_t(o.window * opt.config.hidden);
  std::vector<float> x(windows.size() * size), unused(size);
  runner.embed(windows, x.data(), true);
  std::vector<float> truth = x;
  for (int64_t b = 0; b < 2; ++b) {  // the last learns predictions
    double sum = 0;
    for (size_t w = 0; w < windows.size(); ++w) {
      const auto sight = w == 0 ? calibrate::Sight::alone : calibrate::Sight::causal;
      const std::span y(x.data() + w * size, size), target(truth.data() + w * size, size);
      runner.forward(calibrate::load_finished(*out, opt.config, o.scheme, b), o.scheme, y.data(),
                     o.window, {}, sight);
      runner.forward(calibrate::BlockWeights::load(*in, opt.config, b), {}, target.data(), o.window,
                     {}, sight);
      sum += calibrate::relative_error(y, target, opt.config.hidden, 0.25, unused);
    }
    CAPTURE(b);
    CHECK(losses.at(size_t(b)).at(0) == doctest::Approx(sum).epsilon(0.02));
  }
}

TEST_CASE("a faithful run of OPT learns with the ranges that its file is decoded with") {
  const TempDir dir;
  test::TinyOq opt;
  opt.config = test::variant_configs()[0];
  const auto in = test::make_tiny_oq(dir / "in.oq", opt);
  auto o = small_run(dir / "in.oq", dir / "out.oq", "omniquant", "w4a16q3kv3");
  o.learning.faithful = true;
  o.learning.epochs = 1;
  o.learning.clip_rate = o.learning.transform_rate = 0;  // the loss is that of what is stored
  const double loss = calibrate::calibrate(o).losses.at(0).at(0);
  const auto out = File::open(dir / "out.oq");
  const auto windows = calibrate::calibration_text(in, o, {}).windows;
  calibrate::BlockRunner runner(in, o.window, 2);
  const auto error = [&](const Scheme& scheme) {
    std::vector<float> x(size_t(o.windows * o.window * opt.config.hidden));
    runner.embed(windows, x.data());
    std::vector<float> truth = x;
    for (int64_t w = 0; w < o.windows; ++w) {
      const auto first = size_t(w * o.window * opt.config.hidden);
      runner.forward(calibrate::load_finished(*out, opt.config, scheme, 0), scheme, &x[first],
                     o.window);
      runner.forward(calibrate::BlockWeights::load(*in, opt.config, 0), {}, &truth[first],
                     o.window);
    }
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) sum += std::pow(double(x[i]) - double(truth[i]), 2);
    return sum / double(x.size());
  };
  CHECK(loss == doctest::Approx(error(Scheme::load(*out))).epsilon(0.01));
  CHECK(loss != doctest::Approx(error(o.scheme)).epsilon(0.1));
}

TEST_CASE("a loss that is not finite says where, and what to lower") {
  const TempDir dir;
  test::make_tiny_oq(dir / "in.oq");
  auto o = small_run(dir / "in.oq", dir / "out.oq", "omniquant", "w3a16");
  o.learning.transform = true;
  o.learning.transform_rate = 1e38;
  const std::string text = refusal(o);
  CAPTURE(text);
  CHECK(text.find("blocks.0.") != std::string::npos);
  CHECK(text.find("finite") != std::string::npos);
  CHECK(text.find("--let-lr") != std::string::npos);
}

TEST_CASE("knowing the inputs beats rounding to nearest where it is measured") {
  const TempDir dir;
  test::make_tiny_oq(dir / "in.oq");
  const auto error = [&](const char* method) {
    const auto o = small_run(dir / "in.oq", dir / (std::string(method) + ".oq"), method, "w3a16");
    double sum = 0;
    for (const auto& l : calibrate::calibrate(o).linears) sum += l.output_error;
    return sum;
  };
  CHECK(error("owq") < error("gptq"));
}

TEST_CASE("what cannot be calibrated is refused before any work") {
  const TempDir dir;
  test::make_tiny_oq(dir / "in.oq");
  test::TinyOq packed;
  packed.scheme = "w4a16";
  test::make_tiny_oq(dir / "packed.oq", packed);
  const auto base = small_run(dir / "in.oq", dir / "out.oq", "gptq", "w4a16");
  const auto with = [&](auto change) {
    auto o = base;
    change(o);
    return refusal(o);
  };
  using O = calibrate::Options;
  CHECK(with([&](O& o) { o.input = dir / "packed.oq"; }).find("quantized already") !=
        std::string::npos);
  CHECK(with([](O& o) { o.window = 701; }).find("context") != std::string::npos);
  CHECK(with([](O& o) { o.windows = 0; }).find("windows") != std::string::npos);
  CHECK(with([](O& o) { o.method = "magic"; }).find("rtn, smoothquant") != std::string::npos);
  CHECK(with([](O& o) { o.method = "act-only"; }).find("act-only") != std::string::npos);
  CHECK(with([](O& o) { o.scheme = Scheme::parse("w16a8"); }).find("act-only") !=
        std::string::npos);
  CHECK(with([](O& o) { o.method = "awrq"; }).find("AWRQ") != std::string::npos);
  CHECK(with([](O& o) { o.text = ""; }).find("--text") != std::string::npos);
  CHECK(with([&](O& o) { o.text = (dir / "none.txt").string(); }).find("none.txt") !=
        std::string::npos);
  CHECK(with([&](O& o) { o.output = o.input; }).find("input itself") != std::string::npos);
  CHECK(fs::exists(dir / "out.oq") == false);
  CHECK(with([](O& o) {
          o.method = "rtn";  // which sees no window
          o.text = "";
          o.window = 701;
        }) == "calibrated");
}

TEST_CASE("a report is one page with a chart of every type of linear") {
  const TempDir dir;
  test::make_tiny_oq(dir / "in.oq");
  auto o = small_run(dir / "in.oq", dir / "out.oq", "gptq", "w4a16");
  const auto result = calibrate::calibrate(o);
  const calibrate::Measured measured = {.text = "a text",
                                        .windows = 3,
                                        .window = 24,
                                        .before = 20.5,
                                        .after = 21.25,
                                        .standard_error = 0.25};
  calibrate::write_report(dir / "report.html", o, ModelConfig::load(*File::open(o.input)), result,
                          measured);
  const std::string html = bytes_of(dir / "report.html");
  for (const char* part : {"codes of down", "scales", "zero points", "embedding", "the rest"}) {
    CAPTURE(part);
    CHECK(html.find(part) != std::string::npos);
  }
  CHECK(html.find("21.250, full precision 20.500 (+0.750 +- 0.250); 3 windows") !=
        std::string::npos);
  const calibrate::Measured one = {.windows = 1, .before = 2, .after = 3, .standard_error = NAN};
  CHECK(one.text_line().find("(+1.000); 1 windows") != std::string::npos);
  CHECK(html.find("--method gptq --scheme w4a16") != std::string::npos);
  CHECK(html.find("<svg") != std::string::npos);
  CHECK(html.find("blocks.1.down") != std::string::npos);
  CHECK(html.find("Loss of each block") == std::string::npos);  // nothing was learned
  CHECK(html.find("src=") == std::string::npos);                // nothing from elsewhere
  CHECK(html.find("http") == std::string::npos);
}

TEST_CASE("a report of a learned file has the loss of every block") {
  const TempDir dir;
  test::make_tiny_oq(dir / "in.oq");
  const auto o = small_run(dir / "in.oq", dir / "out.oq", "omniquant", "w4a16");
  const auto result = calibrate::calibrate(o);
  calibrate::write_report(dir / "report.html", o, ModelConfig::load(*File::open(o.input)), result);
  const std::string html = bytes_of(dir / "report.html");
  CHECK(html.find("Loss of each block") != std::string::npos);
  CHECK(html.find(fmt::format("{:.4g}", result.losses[1].back())) != std::string::npos);
  CHECK(html.find("The last block's loss is the divergence") != std::string::npos);
  CHECK(html.find("as chosen") == std::string::npos);  // nothing was
}

TEST_CASE("what auto chose is told apart from the losses of epochs") {
  const TempDir dir;
  test::make_tiny_oq(dir / "in.oq");
  auto o = small_run(dir / "in.oq", dir / "out.oq", "auto", "w3a16");
  o.learning.aug_loss = true;  // a loss of another kind than the error
  const auto result = calibrate::calibrate(o);
  REQUIRE(result.losses.size() == 2);
  for (const auto& losses : result.losses) CHECK(losses.size() == 2);
  REQUIRE(result.output_errors.size() == 2);
  for (const double e : result.output_errors) CHECK((e > 0 && e < 1));
  calibrate::write_report(dir / "report.html", o, ModelConfig::load(*File::open(o.input)), result);
  CHECK(bytes_of(dir / "report.html").find("as chosen") != std::string::npos);
}
