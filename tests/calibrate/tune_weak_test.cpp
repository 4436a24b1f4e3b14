/// Weak-column tuning: gradients through the whole model against finite differences, the loss
/// against the decoder, and the small file that comes of it.

#include "tools/calibrate/tune_weak.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <random>

#include <doctest/doctest.h>
#include <sys/resource.h>

#include "runtime/decoder.h"
#include "tests/support.h"
#include "tests/tiny_oq.h"
#include "tests/variants.h"
#include "tools/calibrate/learn/weak_tuner.h"

using namespace oq;
using test::TempDir;
namespace fs = std::filesystem;

namespace {

std::vector<int32_t> some_tokens(int64_t n, int32_t vocab) {
  std::mt19937 rng(5);
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < n; ++i) tokens.push_back(int32_t(rng() % uint32_t(vocab)));
  return tokens;
}

std::shared_ptr<const File> make(const fs::path& path, const ModelConfig& config,
                                 const char* scheme, uint32_t seed = 1) {
  test::TinyOq tiny;
  tiny.config = config;
  tiny.scheme = scheme;
  tiny.weak_columns = 3;
  tiny.seed = seed;
  return test::make_tiny_oq(path, tiny);
}

void write_weak(const fs::path& path, const File& base, const WeakWeights& weights) {
  Writer out(path, weights.size(), kWeakMetadataRoom);
  write_weak_file(out, base, weights, {});
}

/// Turns a bit of a byte of a file.
void flip(const fs::path& path, uint64_t offset) {
  std::string bytes = test::read_file(path);
  bytes.at(offset) = char(bytes.at(offset) ^ 1);
  test::write_file(path, bytes);
}

/// The same loss from the runtime.
double decoded_loss(const std::shared_ptr<const File>& file, const std::vector<int32_t>& tokens) {
  Decoder d(file, make_cpu_backend(2), {.context = 128, .exact = true});
  double sum = 0;
  for (size_t t = 0; t + 1 < tokens.size(); ++t) {
    const auto logits = d.feed(std::span(&tokens[t], 1));
    const double most = *std::max_element(logits.begin(), logits.end());
    double total = 0;
    for (float v : logits) total += std::exp(double(v) - most);
    sum += most + std::log(total) - double(logits[size_t(tokens[t + 1])]);
  }
  return sum / double(tokens.size() - 1);
}

calibrate::Options options_of(const TempDir& dir) {
  calibrate::Options o;
  o.input = dir / "m.oq";
  o.output = dir / "weak.oq";
  o.text = "self";
  o.windows = 2;
  o.window = 24;
  o.threads = 2;
  return o;
}

}  // namespace

TEST_CASE("the loss is the decoder's, in every variant") {
  const TempDir dir;
  for (const ModelConfig& config : test::variant_configs()) {
    for (const char* scheme : {"w3a16g64", "w4a8"}) {
      const std::string name = scheme;
      CAPTURE(name);
      const auto file = make(dir / "m.oq", config, scheme);
      const auto tokens = some_tokens(90, int32_t(config.vocab));
      calibrate::WeakTuner tuner(file, 96, 2);
      // Two orders of summation fall on two sides of an 8-bit boundary now and then.
      const double tolerance = name == "w4a8" ? 5e-3 : 1e-4;
      CHECK(tuner.loss(tokens) == doctest::Approx(decoded_loss(file, tokens)).epsilon(tolerance));
    }
  }
}

TEST_CASE("gradients of weak columns are those of finite differences, through the whole model") {
  const TempDir dir;
  for (const ModelConfig& config : test::variant_configs()) {
    const auto file = make(dir / "m.oq", config, "w4a16");
    const auto tokens = some_tokens(70, int32_t(config.vocab));
    calibrate::WeakTuner tuner(file, 96, 2, false);
    tuner.learn(tokens);
    const WeakWeights gradients = tuner.gradients();
    for (auto& entry : tuner.weights()) {
      const std::string& name = entry.first;
      std::vector<float>& values = entry.second;
      if (name.find("experts") != std::string::npos) continue;  // a step may change who is chosen
      CAPTURE(name);
      // Along the gradient, so that the slope is its length.
      const std::vector<float>& g = gradients.at(name);
      double length = 0;
      for (float v : g) length += double(v) * double(v);
      length = std::sqrt(length);
      REQUIRE(length > 0);
      const std::vector<float> before = values;
      const double step = 5e-3;
      double sides[2];
      for (int side = 0; side < 2; ++side) {
        for (size_t i = 0; i < values.size(); ++i) {
          values[i] = before[i] + float((side == 0 ? step : -step) * double(g[i]) / length);
        }
        sides[side] = tuner.loss(tokens);
      }
      values = before;
      CHECK((sides[0] - sides[1]) / (2 * step) == doctest::Approx(length).epsilon(0.03));
    }
  }
}

TEST_CASE("tuning lowers the loss, and the small file swaps it in at run time") {
  const TempDir dir;
  for (const char* scheme : {"w3a16g64", "w4a8"}) {
    const std::string name = scheme;
    CAPTURE(name);
    make(dir / "m.oq", test::tiny_config(), scheme);
    const std::string before = test::read_file(dir / "m.oq");
    const auto o = options_of(dir);
    const auto result = calibrate::tune_weak(o, {.steps = 60, .rate = 5e-3});
    CHECK(result.after < 0.9 * result.before);
    CHECK(result.weights == 2 * 3 * (120 + 40 + 40 + 72 + 100 + 100 + 72));
    CHECK(test::read_file(dir / "m.oq") == before);  // dense codes and all
    CHECK(fs::file_size(dir / "weak.oq") < before.size() / 2);

    const auto tuned = open_with_weak(dir / "m.oq", dir / "weak.oq");
    tuned->verify();
    const auto plain = File::open(dir / "m.oq");
    plain->verify();
    const auto tokens = some_tokens(60, 101);
    calibrate::WeakTuner a(plain, 64, 2), b(tuned, 64, 2);
    CHECK(a.weights() != b.weights());
    CHECK(b.loss(tokens) == doctest::Approx(decoded_loss(tuned, tokens)).epsilon(5e-3));
    CHECK(open_with_weak(dir / "m.oq", "")->tensor("blocks.0.q").crc ==
          plain->tensor("blocks.0.q").crc);
    const auto copied = open_with_weak(dir / "m.oq", dir / "weak.oq", Pages::huge);
    copied->verify();
    for (const TensorInfo& t : tuned->tensors()) {
      CAPTURE(t.name);
      const auto mine = tuned->data(t), other = copied->data(copied->tensor(t.name));
      CHECK(std::equal(mine.begin(), mine.end(), other.begin(), other.end()));
    }
    CHECK(test::read_file(dir / "m.oq") == before);

    calibrate::tune_weak(o, {.steps = 60, .rate = 5e-3});  // the same once more
    CHECK(open_with_weak(dir / "m.oq", dir / "weak.oq")->tensor("blocks.1.down").crc ==
          tuned->tensor("blocks.1.down").crc);
  }
}

TEST_CASE("weak columns of another file, and damaged ones, are refused") {
  const TempDir dir;
  make(dir / "m.oq", test::tiny_config(), "w3a16");
  const auto base = File::open(dir / "m.oq");
  const auto refused = [&](const char* model, const char* weak, const char* says) {
    CAPTURE(weak);
    CHECK_THROWS_WITH_AS(open_with_weak(dir / model, dir / weak), doctest::Contains(says), Error);
  };
  calibrate::WeakTuner tuner(base, 32, 1);
  write_weak(dir / "weak.oq", *base, tuner.weights());
  CHECK(open_with_weak(dir / "m.oq", dir / "weak.oq")->tensor("blocks.0.q").crc ==
        base->tensor("blocks.0.q").crc);  // nothing was tuned
  make(dir / "other.oq", test::tiny_config(), "w3a16", 2);
  refused("other.oq", "weak.oq", "another file's weak columns");
  refused("m.oq", "m.oq", "holds no weak columns");
  refused("m.oq", "none.oq", "none.oq");

  const std::string bytes = test::read_file(dir / "weak.oq");
  for (size_t n = 0; n < bytes.size(); n += 211) {
    test::write_file(dir / "cut.oq", bytes.substr(0, n));
    CHECK_THROWS_AS(open_with_weak(dir / "m.oq", dir / "cut.oq"), Error);
  }
  test::write_file(dir / "flipped.oq", bytes);
  flip(dir / "flipped.oq", bytes.size() - 70);
  CHECK_THROWS_AS(open_with_weak(dir / "m.oq", dir / "flipped.oq"), Error);

  auto weights = tuner.weights();
  weights["blocks.0.q"].pop_back();
  CHECK_THROWS_WITH_AS(write_weak(dir / "x.oq", *base, weights), doctest::Contains("blocks.0.q"),
                       Error);
  weights = tuner.weights();
  weights["blocks.0.q"][4] = 1e9f;
  CHECK_THROWS_WITH_AS(write_weak(dir / "x.oq", *base, weights), doctest::Contains("does not fit"),
                       Error);

  // A sound file for this very model, with what it must not hold.
  const std::string identity =
      File::open(dir / "weak.oq")->metadata().get<std::string>("weak.base");
  const auto hostile = [&](const char* name, Kind kind, uint64_t rows, uint16_t value) {
    Writer out(dir / "hostile.oq", 1);
    out.metadata.set("weak.base", identity);
    const std::vector<uint16_t> values(rows * 24, value);
    out.add({.name = name, .kind = kind, .rows = rows, .cols = 24},
            std::as_bytes(std::span(values)));
    out.finish();
  };
  hostile("blocks.0.q", Kind::f16, 15, 0x7e00);
  refused("m.oq", "hostile.oq", "not finite");
  hostile("blocks.0.q", Kind::f16, 16, 0);
  refused("m.oq", "hostile.oq", "expected f16 [15, 24], found f16 [16, 24]");
  hostile("blocks.0.q", Kind::bf16, 15, 0);
  refused("m.oq", "hostile.oq", "another type");
  hostile("embedding", Kind::f16, 15, 0);
  refused("m.oq", "hostile.oq", "no weak columns there");
  hostile("nothing", Kind::f16, 15, 0);
  refused("m.oq", "hostile.oq", "no weak columns there");
}

TEST_CASE("what cannot be tuned is refused") {
  const TempDir dir;
  test::make_tiny_oq(dir / "m.oq");
  const auto o = options_of(dir);
  CHECK_THROWS_WITH_AS(calibrate::tune_weak(o, {.steps = 1}), doctest::Contains("no weak columns"),
                       Error);
  make(dir / "m.oq", test::tiny_config(), "w3a16");
  CHECK_THROWS_WITH_AS(calibrate::tune_weak(o, {.steps = 40, .rate = 1e30}),
                       doctest::Contains("blocks.0.output"), Error);
  CHECK_THROWS_WITH_AS(calibrate::tune_weak(o, {.steps = 40, .rate = 1e30}),
                       doctest::Contains("--tune-lr"), Error);
  auto same = o;
  same.output = same.input;
  CHECK_THROWS_WITH_AS(calibrate::tune_weak(same, {.steps = 1}), doctest::Contains("input itself"),
                       Error);
  CHECK_FALSE(fs::exists(dir / "weak.oq"));
}

TEST_CASE("damage of the model does not vanish behind tuned columns") {
  const TempDir dir;
  const auto base = make(dir / "m.oq", test::tiny_config(), "w3a16");
  write_weak(dir / "weak.oq", *base, calibrate::WeakTuner(base, 32, 1).weights());
  flip(dir / "m.oq", base->tensor("blocks.1.down").offset);  // a code
  for (const Pages pages : {Pages::ordinary, Pages::huge}) {
    CHECK_THROWS_WITH_AS(open_with_weak(dir / "m.oq", dir / "weak.oq", pages),
                         doctest::Contains("blocks.1.down"), Error);
  }
}

namespace {

/// Within this, the process may have only so many more bytes of private memory that it can write.
class DataLimit {
 public:
  explicit DataLimit(uint64_t more) {
    getrlimit(RLIMIT_DATA, &before_);
    rlimit limit = before_;
    limit.rlim_cur = used() + more;
    setrlimit(RLIMIT_DATA, &limit);
  }
  ~DataLimit() { setrlimit(RLIMIT_DATA, &before_); }

 private:
  static uint64_t used() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
      if (line.rfind("VmData:", 0) == 0) return std::stoull(line.substr(7)) << 10;
    }
    return 0;
  }

  rlimit before_ = {};
};

}  // namespace

TEST_CASE("a model with tuned columns takes memory for these alone") {
  const TempDir dir;
  const auto tiny = make(dir / "tiny.oq", test::tiny_config(), "w3a16");
  constexpr uint64_t kMega = 1 << 20;
  {
    const TensorInfo& q = tiny->tensor("blocks.0.q");
    Writer out(dir / "m.oq", 2);
    out.add({.name = "large", .kind = Kind::bytes, .rows = 1, .cols = 64 * kMega},
            std::vector<std::byte>(64 * kMega));
    out.add({.name = q.name, .kind = q.kind, .rows = q.rows, .cols = q.cols, .packing = q.packing},
            tiny->data(q));
    out.finish();
  }
  const auto large = File::open(dir / "m.oq");
  write_weak(dir / "weak.oq", *large, {{"blocks.0.q", std::vector<float>(120 * 3, 0.5f)}});
  const DataLimit limit(32 * kMega);
  const auto tuned = open_with_weak(dir / "m.oq", dir / "weak.oq");
  CHECK(tuned->packed(tuned->tensor("blocks.0.q")).weak_weight(0, 0) == 0.5f);
}

TEST_CASE("windows beyond the model's context are refused before any work") {
  const TempDir dir;
  for (const size_t variant : {0, 4, 6}) {  // learned positions, ALiBi, RoPE
    const ModelConfig config = test::variant_configs()[variant];
    make(dir / "m.oq", config, "w3a16");
    auto o = options_of(dir);
    o.window = config.context + 1;
    for (const char* text : {"self", "none.txt"}) {
      o.text = text;
      CHECK_THROWS_WITH_AS(calibrate::tune_weak(o, {.steps = 1}), doctest::Contains("--window 701"),
                           Error);
    }
    o.window = 1;
    CHECK_THROWS_WITH_AS(calibrate::tune_weak(o, {.steps = 1}), doctest::Contains("2 tokens"),
                         Error);
  }
}

TEST_CASE("an output that cannot be written is found before the work") {
  const TempDir dir;
  make(dir / "m.oq", test::tiny_config(), "w3a16");
  auto o = options_of(dir);
  o.output = dir / "none/weak.oq";
  int shown = 0;
  const auto count = [&](double, double, std::string_view) { ++shown; };
  CHECK_THROWS_WITH_AS(calibrate::tune_weak(o, {.steps = 1}, {.progress = count, .notice = {}}),
                       doctest::Contains("cannot be created"), Error);
  CHECK(shown == 0);
}

TEST_CASE("only windows that are trained on are drawn and measured, and all of it is shown") {
  const TempDir dir;
  make(dir / "m.oq", test::tiny_config(), "w3a16");
  auto o = options_of(dir);
  o.windows = 50;
  std::vector<std::string> shown;
  double last = 0;
  const auto show = [&](double done, double total, std::string_view what) {
    if (what.find("writing") != std::string_view::npos) return;  // the text
    shown.emplace_back(what);
    CHECK(done > last);
    CHECK(total == 2 * 3 + 4 * 3);
    last = done;
  };
  calibrate::tune_weak(o, {.steps = 3, .rate = 5e-3}, {.progress = show, .notice = {}});
  CHECK(shown.size() == 3 + 3 + 3);
  CHECK(shown.front() == "measuring the loss");
  CHECK(shown[3].rfind("step 1, loss", 0) == 0);
  CHECK(last == 2 * 3 + 4 * 3);
  const auto options = File::open(o.output)->metadata().get<std::string>("calibration.options");
  CHECK(options.find("--windows 3 ") != std::string::npos);
}

TEST_CASE("tuning that did not lower the loss says so") {
  const TempDir dir;
  make(dir / "m.oq", test::tiny_config(), "w3a16");
  std::string noticed;
  const auto notice = [&](std::string_view text) { noticed += text; };
  const auto result = calibrate::tune_weak(options_of(dir), {.steps = 4, .rate = 0.9},
                                           {.progress = {}, .notice = notice});
  REQUIRE(result.after > result.before);
  CHECK(noticed.find("did not fall") != std::string::npos);
  CHECK(noticed.find("--tune-lr") != std::string::npos);
}
