#include "bench/throughput.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <set>

#include <fmt/format.h>

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

/// Every sequence of the batch ends at `depth`, whatever was there.
void bring_to(Decoder& decoder, int64_t depth, int64_t batch) {
  for (int32_t s = 0; s < int32_t(batch); ++s) {
    if (decoder.length(s) < depth) {
      decoder.feed(random_tokens(depth - decoder.length(s), decoder.config().vocab), s);
    }
    decoder.truncate(depth, s);
  }
}

/// One token of each sequence, and its successor's choice by the largest logit.
void step(Decoder& decoder, int32_t token, int64_t position, int64_t batch) {
  const auto n = static_cast<size_t>(batch);
  const std::vector<int32_t> tokens(n, token), positions(n, static_cast<int32_t>(position));
  std::vector<int32_t> rows(n);
  std::iota(rows.begin(), rows.end(), 0);
  decoder.step({.tokens = tokens, .positions = positions, .sequences = rows, .logit_rows = rows});
  for (int64_t i = 0; i < batch; ++i) decoder.rank({.vocab = decoder.config().vocab}, i);
}

double seconds(Decoder& decoder, const ThroughputTest& test, std::span<const int32_t> ids) {
  bring_to(decoder, test.depth, test.batch);
  const auto start = std::chrono::steady_clock::now();
  if (test.decode) {
    for (size_t i = 0; i < ids.size(); ++i) {
      step(decoder, ids[i], test.depth + int64_t(i), test.batch);
    }
  } else {
    for (int32_t s = 0; s < int32_t(test.batch); ++s) decoder.feed(ids, s);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

std::string ThroughputTest::name() const {
  std::string text = fmt::format("{}{}", decode ? "tg" : "pp", tokens);
  if (depth > 0) text += fmt::format(" @ d{}", depth);
  if (batch > 1) text += fmt::format(" x {}", batch);
  return text;
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::vector<Throughput> measure_throughput(Decoder& decoder,
                                           const std::vector<ThroughputTest>& tests,
                                           int repetitions, Probe& probe,
                                           const std::function<void()>& between) {
  std::vector<Throughput> results;
  std::set<int64_t> depths;
  for (const ThroughputTest& test : tests) {
    Throughput t{.test = test, .rates = {}, .shares = {}};
    if (test.decode) {
      t.bytes_per_token = double(decoder.bytes_per_token()) / double(test.batch) +
                          double(decoder.kv_bytes(test.depth + (test.tokens - 1) / 2));
    }
    results.push_back(t);
    depths.insert(test.depth);
  }
  for (const int64_t depth : depths) {
    for (int r = -1; r < repetitions; ++r) {  // the first warms caches and page tables
      for (Throughput& t : results) {
        if (t.test.depth != depth) continue;
        const auto ids = random_tokens(t.test.tokens, decoder.config().vocab);
        const double bandwidth = probe.measure();
        const double rate = double(t.test.tokens * t.test.batch) / seconds(decoder, t.test, ids);
        if (r < 0) continue;
        t.rates.push_back(rate);
        t.shares.push_back(rate * t.bytes_per_token / bandwidth);
      }
      if (r >= 0 && between) between();
    }
  }
  for (Throughput& t : results) {
    std::sort(t.rates.begin(), t.rates.end());
    std::sort(t.shares.begin(), t.shares.end());
  }
  return results;
}

}  // namespace oq
