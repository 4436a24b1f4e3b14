/// The choice between engines: by rule, by measurement, and what a cache of choices may do.

#include "runtime/backend/cuda/engine_tuner.h"

#include <doctest/doctest.h>

#include "format/error.h"
#include "tests/support.h"

using namespace oq;
using namespace oq::test;
using cuda::Engine;

namespace {

cuda::DeviceInfo device(int major) {
  return {.name = "a device",
          .major = major,
          .minor = 0,
          .processors = 9,
          .driver = 13000,
          .toolkit = 12080};
}

EngineShape shape(int weight_bits, int bits, int tokens) {
  return {.bits = bits,
          .weight_bits = weight_bits,
          .five_levels = false,
          .group = 128,
          .rows = 4096,
          .cols = 4096,
          .tokens = tokens,
          .experts = false};
}

/// Measures as told, and counts.
struct Clock {
  double bytes, planes;
  int calls = 0;

  EngineTuner::Measure measure() {
    return [this](Engine e) {
      ++calls;
      return std::optional(e == Engine::bytes ? bytes : planes);
    };
  }
};

std::optional<double> unmeasured(Engine) { return std::nullopt; }

}  // namespace

TEST_CASE("where nothing can be measured, a rule chooses") {
  EngineTuner tuner(device(9), "", "");
  CHECK(tuner.choose(shape(2, 8, 1), unmeasured) == Engine::planes);
  CHECK(tuner.choose(shape(2, 2, 8), unmeasured) == Engine::planes);
  CHECK(tuner.choose(shape(2, 8, 8), unmeasured) == Engine::bytes);
  CHECK(tuner.choose(shape(4, 8, 1), unmeasured) == Engine::bytes);
  Clock clock{2, 1};  // too late
  CHECK(tuner.choose(shape(4, 8, 1), clock.measure()) == Engine::bytes);
  CHECK(clock.calls == 0);
  for (int major : {7, 10}) {  // without an instruction for planes
    EngineTuner other(device(major), "", "");
    CHECK(other.choose(shape(2, 8, 1), unmeasured) == Engine::bytes);
    CHECK(other.choose(shape(2, 8, 2), clock.measure()) == Engine::bytes);
  }
  CHECK(clock.calls == 2);
}

TEST_CASE("an engine can be forced, and only one that there is") {
  Clock clock{1, 2};
  for (const auto& [name, engine] :
       {std::pair("bytes", Engine::bytes), {"planes", Engine::planes}}) {
    EngineTuner tuner(device(9), name, "");
    CHECK(tuner.choose(shape(8, 8, 8), clock.measure()) == engine);
  }
  CHECK(clock.calls == 0);
  CHECK_THROWS_WITH_AS(EngineTuner(device(9), "bits", ""), doctest::Contains("OQ_CUDA_ENGINE"),
                       Error);
  CHECK_THROWS_WITH_AS(EngineTuner(device(7), "planes", ""), doctest::Contains("8.0 or later"),
                       Error);
}

TEST_CASE("the faster engine is found once for each shape, and kept") {
  const TempDir dir;
  const auto cache = dir / "deeper/engines.txt";
  Clock clock{2, 1};
  {
    EngineTuner tuner(device(8), "", cache);
    CHECK(tuner.choose(shape(4, 8, 3), clock.measure()) == Engine::planes);
    CHECK(tuner.choose(shape(4, 8, 3), clock.measure()) == Engine::planes);
    CHECK(clock.calls == 2);
    clock.planes = 3;
    CHECK(tuner.choose(shape(4, 8, 4), clock.measure()) == Engine::bytes);
    CHECK(tuner.choose(shape(4, 8, 100), clock.measure()) == Engine::bytes);
    CHECK(tuner.choose(shape(4, 8, 128), clock.measure()) == Engine::bytes);
    CHECK(clock.calls == 6);
  }
  EngineTuner again(device(8), "", cache);
  CHECK(again.notice().empty());
  CHECK(again.choose(shape(4, 8, 3), clock.measure()) == Engine::planes);
  CHECK(again.choose(shape(4, 8, 4), clock.measure()) == Engine::bytes);
  CHECK(clock.calls == 6);
  cuda::DeviceInfo newer = device(8);
  newer.driver = 13010;
  EngineTuner other(newer, "", cache);
  CHECK(other.notice().empty());
  CHECK(other.choose(shape(4, 8, 3), clock.measure()) == Engine::bytes);
  CHECK(clock.calls == 8);
}

TEST_CASE("a cache that is damaged anywhere is not used, and that is said") {
  const TempDir dir;
  const auto cache = dir / "engines.txt";
  Clock clock{2, 1};
  EngineTuner(device(9), "", cache).choose(shape(4, 8, 3), clock.measure());
  const std::string good = read_file(cache);
  std::vector<std::string> bad = {"", "\n", "x", good + "x", good + good};
  for (size_t cut = 1; cut < good.size(); ++cut) bad.push_back(good.substr(0, cut));
  for (size_t at = 0; at < good.size(); ++at) {
    bad.push_back(good);
    bad.back()[at] ^= 1;
  }
  for (const std::string& text : bad) {
    write_file(cache, text);
    EngineTuner tuner(device(9), "", cache);
    CAPTURE(text);
    CHECK(tuner.notice().find("damaged") != std::string::npos);
    CHECK(tuner.choose(shape(4, 8, 3), unmeasured) == Engine::bytes);
  }
  EngineTuner tuner(device(9), "", cache);
  CHECK(tuner.choose(shape(4, 8, 3), clock.measure()) == Engine::planes);
  CHECK(read_file(cache) == good);
}
