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

/// Measures as told, and counts: for each choice one to warm up, then every candidate.
struct Clock {
  double bytes, planes;
  double apart = 0.5;  ///< what quantization in a launch of its own adds
  int calls = 0;

  EngineTuner::Measure measure() {
    return [this](EngineChoice c) {
      ++calls;
      return std::optional((c.engine == Engine::bytes ? bytes : planes) + (c.fused ? 0 : apart));
    };
  }
};

std::optional<double> unmeasured(EngineChoice) { return std::nullopt; }

/// Of calls that cannot be fused.
Engine engine_of(EngineTuner& tuner, const EngineShape& shape,
                 const EngineTuner::Measure& measure) {
  const EngineChoice choice = tuner.choose(shape, false, measure);
  CHECK_FALSE(choice.fused);
  return choice.engine;
}

}  // namespace

TEST_CASE("where nothing can be measured, a rule chooses") {
  EngineTuner tuner(device(9), "", "");
  CHECK(engine_of(tuner, shape(2, 8, 1), unmeasured) == Engine::planes);
  CHECK(engine_of(tuner, shape(2, 2, 8), unmeasured) == Engine::planes);
  CHECK(engine_of(tuner, shape(2, 8, 8), unmeasured) == Engine::bytes);
  CHECK(engine_of(tuner, shape(4, 8, 1), unmeasured) == Engine::bytes);
  Clock clock{2, 1};  // too late
  CHECK(engine_of(tuner, shape(4, 8, 1), clock.measure()) == Engine::bytes);
  CHECK(clock.calls == 0);
  for (int major : {7, 10}) {  // without an instruction for planes
    EngineTuner other(device(major), "", "");
    CHECK(engine_of(other, shape(2, 8, 1), unmeasured) == Engine::bytes);
    CHECK(engine_of(other, shape(2, 8, 2), clock.measure()) == Engine::bytes);
  }
  CHECK(clock.calls == 4);
}

TEST_CASE("an engine can be forced, and only one that there is") {
  Clock clock{1, 2};
  for (const auto& [name, engine] :
       {std::pair("bytes", Engine::bytes), {"planes", Engine::planes}}) {
    EngineTuner tuner(device(9), name, "");
    CHECK(engine_of(tuner, shape(8, 8, 8), clock.measure()) == engine);
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
    CHECK(engine_of(tuner, shape(4, 8, 3), clock.measure()) == Engine::planes);
    CHECK(engine_of(tuner, shape(4, 8, 3), clock.measure()) == Engine::planes);
    CHECK(clock.calls == 3);
    clock.planes = 3;
    CHECK(engine_of(tuner, shape(4, 8, 4), clock.measure()) == Engine::bytes);
    CHECK(engine_of(tuner, shape(4, 8, 100), clock.measure()) == Engine::bytes);
    CHECK(engine_of(tuner, shape(4, 8, 128), clock.measure()) == Engine::bytes);
    CHECK(clock.calls == 9);
  }
  EngineTuner again(device(8), "", cache);
  CHECK(again.notice().empty());
  CHECK(engine_of(again, shape(4, 8, 3), clock.measure()) == Engine::planes);
  CHECK(engine_of(again, shape(4, 8, 4), clock.measure()) == Engine::bytes);
  CHECK(clock.calls == 9);
  cuda::DeviceInfo newer = device(8);
  newer.driver = 13010;
  EngineTuner other(newer, "", cache);
  CHECK(other.notice().empty());
  CHECK(engine_of(other, shape(4, 8, 3), clock.measure()) == Engine::bytes);
  CHECK(clock.calls == 12);
}

TEST_CASE("two processes at once keep each other's choices") {
  const TempDir dir;
  const auto cache = dir / "engines.txt";
  Clock clock{2, 1};
  EngineTuner one(device(9), "", cache), two(device(9), "", cache);
  engine_of(one, shape(4, 8, 1), clock.measure());
  engine_of(two, shape(4, 8, 2), clock.measure());
  EngineTuner both(device(9), "", cache);
  for (const int tokens : {1, 2}) {
    CHECK(engine_of(both, shape(4, 8, tokens), unmeasured) == Engine::planes);
  }
}

TEST_CASE("quantization is fused where that is possible and, once measured, faster") {
  const TempDir dir;
  const auto cache = dir / "engines.txt";
  EngineTuner ruled(device(9), "", ""), forced(device(9), "planes", "");
  for (const bool can : {true, false}) {
    CHECK(ruled.choose(shape(4, 8, 1), can, unmeasured) == EngineChoice{Engine::bytes, can});
    CHECK(forced.choose(shape(4, 8, 1), can, unmeasured) == EngineChoice{Engine::planes, can});
  }
  Clock clock{2, 1};
  {
    EngineTuner tuner(device(9), "", cache);
    const EngineChoice fused{Engine::planes, true}, apart{Engine::planes, false};
    CHECK(tuner.choose(shape(4, 8, 1), true, clock.measure()) == fused);
    clock.apart = -0.5;
    CHECK(tuner.choose(shape(4, 8, 8), true, clock.measure()) == apart);
    CHECK(clock.calls == 10);
  }
  EngineTuner again(device(9), "", cache);
  CHECK(again.choose(shape(4, 8, 1), true, unmeasured) == EngineChoice{Engine::planes, true});
  CHECK(again.choose(shape(4, 8, 1), false, unmeasured) == EngineChoice{Engine::planes, false});
  CHECK(again.choose(shape(4, 8, 8), true, unmeasured) == EngineChoice{Engine::planes, false});
}

TEST_CASE("a cache that is damaged anywhere is not used, and that is said") {
  const TempDir dir;
  const auto cache = dir / "engines.txt";
  Clock clock{2, 1};
  EngineTuner(device(9), "", cache).choose(shape(4, 8, 3), false, clock.measure());
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
    CHECK(engine_of(tuner, shape(4, 8, 3), unmeasured) == Engine::bytes);
  }
  EngineTuner tuner(device(9), "", cache);
  CHECK(engine_of(tuner, shape(4, 8, 3), clock.measure()) == Engine::planes);
  CHECK(read_file(cache) == good);
}
