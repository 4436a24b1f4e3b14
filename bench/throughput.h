#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/bandwidth.h"
#include "runtime/decoder.h"

namespace oq {

/// One test of a decoder: `pp512` feeds 512 tokens at once, `tg128` one after another.
struct ThroughputTest {
  bool decode = false;
  int64_t tokens = 0;

  std::string name() const { return (decode ? "tg" : "pp") + std::to_string(tokens); }
};

struct Throughput {
  ThroughputTest test;
  std::vector<double> rates;   ///< tokens per second of each repetition, sorted
  double bytes_per_token = 0;  ///< decode: weights and KV cache, on average

  double median() const { return rates[rates.size() / 2]; }
  double bandwidth() const { return median() * bytes_per_token; }
};

/// Runs each test `repetitions` times, after one warm-up, in turn with passes of the probe.
/// Tokens are pseudo-random, the same on every run.
std::vector<Throughput> measure_throughput(Decoder& decoder, std::vector<ThroughputTest> tests,
                                           int repetitions, BandwidthProbe& probe);

}  // namespace oq
