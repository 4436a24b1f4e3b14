#include "bench/throughput.h"

#include <algorithm>
#include <chrono>

namespace oq {
namespace {

/// Token ids spread over the vocabulary.
std::vector<int32_t> random_tokens(int64_t n, int64_t vocab) {
  std::vector<int32_t> ids(static_cast<size_t>(n));
  uint64_t state = 1;
  for (int32_t& id : ids) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    id = int32_t((state >> 33) % uint64_t(vocab));
  }
  return ids;
}

double seconds(Decoder& decoder, const ThroughputTest& test, std::span<const int32_t> ids) {
  decoder.truncate(0);
  const auto start = std::chrono::steady_clock::now();
  if (test.decode) {
    for (size_t i = 0; i < ids.size(); ++i) decoder.feed(ids.subspan(i, 1));
  } else {
    decoder.feed(ids);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

std::vector<Throughput> measure_throughput(Decoder& decoder, std::vector<ThroughputTest> tests,
                                           int repetitions, BandwidthProbe& probe) {
  std::vector<Throughput> results;
  for (const ThroughputTest& test : tests) {
    Throughput t{.test = test, .rates = {}};
    if (test.decode) {
      t.bytes_per_token =
          double(decoder.bytes_per_token()) + double(decoder.kv_bytes((test.tokens - 1) / 2));
    }
    results.push_back(t);
  }
  for (int r = -1; r < repetitions; ++r) {  // the first warms caches and page tables
    for (Throughput& t : results) {
      const auto ids = random_tokens(t.test.tokens, decoder.config().vocab);
      probe.measure();
      const double time = seconds(decoder, t.test, ids);
      if (r >= 0) t.rates.push_back(double(t.test.tokens) / time);
    }
  }
  while (probe.passes() < 7) probe.measure();
  for (Throughput& t : results) std::sort(t.rates.begin(), t.rates.end());
  return results;
}

}  // namespace oq
