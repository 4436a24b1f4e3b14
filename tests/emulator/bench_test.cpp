/// What oq-bench does with a GPU: a model whose weights the device makes, measured beside a probe
/// of the device's memory. The emulator has no clock, so nothing here says how fast.

#include <cmath>

#include <doctest/doctest.h>

#include "bench/device_probe.h"
#include "bench/synthetic.h"
#include "bench/throughput.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "tests/simt/device_state.h"
#include "tests/tiny_oq.h"

using namespace oq;
using namespace oq::test;

TEST_CASE("a model whose weights the device makes runs oq-bench's tests") {
  const Shape shape{.name = "tiny", .config = tiny_config()};
  for (const char* scheme : {"w4a16g64", "w2*a8", "w16a16"}) {
    const std::string name = scheme;
    CAPTURE(name);
    const auto file =
        make_synthetic(shape, {.scheme = Scheme::parse(scheme), .weak_columns = 2, .hollow = true});
    const auto random = [&](const TensorInfo& t) { return synthetic_deviation(shape.config, t); };
    Decoder decoder(file, make_cuda_backend({.random = random}),
                    {.context = 20, .sequences = 2, .max_rows = 20});
    CHECK(decoder.backend().device_bytes().value_or(0) > 0);
    const auto probe = make_device_probe(1 << 20);
    const auto results = measure_throughput(
        decoder,
        {{.decode = false, .tokens = 12}, {.decode = true, .tokens = 3, .depth = 9, .batch = 2}}, 2,
        *probe);
    REQUIRE(results.size() == 2);
    CHECK(results[1].rates.size() == 2);
    CHECK(probe->rates().size() == 6);  // a warm-up and two repetitions of both
    const std::vector<int32_t> tokens = {1, 2, 3};
    decoder.truncate(0);
    for (const float x : decoder.feed(tokens)) REQUIRE(std::isfinite(x));
  }
}

TEST_CASE("a device with too little left to be measured says so") {
  simt::DeviceState& device = simt::device_state();
  const size_t before = device.memory;
  device.memory = device.used + (1 << 20);
  CHECK_THROWS_WITH_AS(make_device_probe(), doctest::Contains("too little"), Error);
  device.memory = before;
}
