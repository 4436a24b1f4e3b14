#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "bench/probe.h"
#include "runtime/decoder.h"

namespace oq {

/// One test of a decoder. `pp512` feeds 512 tokens at once, `tg128` one after another; `@ d4096`
/// behind 4096 others, which do not count; `x 8` in 8 sequences, whose tokens share each step.
struct ThroughputTest {
  bool decode = false;
  int64_t tokens = 0;  ///< of a sequence
  int64_t depth = 0;
  int64_t batch = 1;  ///< sequences

  std::string name() const;
};

/// The middle one, of two the larger; 0 of none.
double median(std::vector<double> values);

struct Throughput {
  ThroughputTest test;
  std::vector<double> rates;   ///< tokens per second of all sequences, by repetition, sorted
  std::vector<double> shares;  ///< decode: of the bandwidth that a pass of the probe had read just
                               ///< before, by repetition, sorted
  double bytes_per_token = 0;  ///< decode: weights and KV cache, on average; a step reads the
                               ///< weights once for its whole batch (experts: as if alike)

  double median() const { return oq::median(rates); }
  double share() const { return oq::median(shares); }
  double bandwidth() const { return median() * bytes_per_token; }
};

/// Runs each test `repetitions` times, after one warm-up, in turn with passes of the probe. Tests
/// of one depth take turns; `between` is called after each repetition of all of them but the
/// warm-up. Tokens are pseudo-random, the same on every run.
/// PRECOND: the decoder has room for depth + tokens of every sequence.
std::vector<Throughput> measure_throughput(Decoder& decoder,
                                           const std::vector<ThroughputTest>& tests,
                                           int repetitions, Probe& probe,
                                           const std::function<void()>& between = {});

}  // namespace oq
