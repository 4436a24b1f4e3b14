/// Whole models through the CUDA backend, teacher-forced against the CPU with --exact.

#include "runtime/decoder.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <doctest/doctest.h>

#include "runtime/backend/cuda/cuda_backend.h"
#include "tests/support.h"
#include "tests/tiny_oq.h"
#include "tests/variants.h"

using namespace oq;
using namespace oq::test;

namespace {

/// Both backends, fed the same tokens.
class Pair {
 public:
  Pair(const std::shared_ptr<const File>& file, int kv_bits, bool exact)
      : options_{.context = 200, .sequences = 3, .max_rows = 80, .exact = true, .kv_bits = kv_bits},
        cpu_(file, make_cpu_backend(1), options_),
        cuda_(file, make_cuda_backend(), with(options_, exact)) {}

  /// One step: a token of each of these sequences, or more where one stands more often.
  void step(std::vector<int32_t> sequences) {
    std::vector<int32_t> tokens, positions, rows;
    std::vector<int64_t> lengths = {cpu_.length(0), cpu_.length(1), cpu_.length(2)};
    for (size_t i = 0; i < sequences.size(); ++i) {
      tokens.push_back(int32_t(token_ = (token_ * 7 + 13) % 101));
      positions.push_back(int32_t(lengths[size_t(sequences[i])]++));
      if (i % 2 == 0 || i + 1 == sequences.size()) rows.push_back(int32_t(i));
    }
    const Batch batch{tokens, positions, sequences, rows};
    cpu_.step(batch);
    cuda_.step(batch);
    for (size_t i = 0; i < rows.size(); ++i)
      compare(cpu_.logits(int64_t(i)), cuda_.logits(int64_t(i)));
  }

  double worst() const { return worst_; }
  double spread() const { return spread_; }  ///< of the logits, so that a limit means something

 private:
  static Decoder::Options with(Decoder::Options options, bool exact) {
    options.exact = exact;
    return options;
  }

  void compare(std::span<const float> a, std::span<const float> b) {
    REQUIRE(a.size() == b.size());
    size_t best = 0, second = a.size() > 1 ? 1 : 0;
    for (size_t i = 0; i < a.size(); ++i) {
      const double difference = std::fabs(double(a[i]) - double(b[i]));
      if (!(difference <= worst_)) worst_ = difference;  // a NaN stays
      if (a[i] > a[best]) best = i;
      spread_ = std::max(spread_, double(std::fabs(a[i])));
    }
    second = best == 0 ? 1 : 0;
    for (size_t i = 0; i < a.size(); ++i) {
      if (i != best && a[i] > a[second]) second = i;
    }
    const auto greedy = size_t(std::max_element(b.begin(), b.end()) - b.begin());
    if (a[best] - a[second] > 2e-3f) CHECK(greedy == best);
  }

  Decoder::Options options_;
  Decoder cpu_, cuda_;
  int token_ = 5;
  double worst_ = 0, spread_ = 0;
};

void check(const TinyOq& tiny, int kv_bits = 0) {
  const TempDir dir;
  Pair pair(make_tiny_oq(dir / "tiny.oq", tiny), kv_bits, true);
  pair.step(std::vector<int32_t>(11, 0));  // a prompt: more rows than decode's kernels take
  pair.step({1, 0, 1});
  pair.step({0});
  pair.step({2, 0, 1, 2, 2});
  CAPTURE(tiny.scheme);
  CAPTURE(kv_bits);
  CHECK(pair.spread() > 0.5);
  CHECK(pair.worst() <= 1e-3);
}

}  // namespace

TEST_SUITE_BEGIN("models");

TEST_CASE("a tiny LLaMA decodes on the device as on the CPU, at every scheme") {
  for (const char* scheme : {"w16a16", "w4a16g32", "w3a16", "w2a16g64", "w2*a16g32", "w8a16g128",
                             "w4a8g32", "w6a6q6kv6"}) {
    check({.scheme = scheme});
  }
  check({.scheme = "w3a16", .weak_columns = 6});
  check({.scheme = "w4a8", .weak_columns = 3});
}

TEST_CASE("the KV cache of every kind") {
  for (int kv_bits : {32, 16, 8, 4}) check({.scheme = "w4a16g32"}, kv_bits);
}

TEST_CASE("every family's variant decodes on the device as on the CPU") {
  for (const char* scheme : {"w16a16", "w4a16g64"}) {
    for (const ModelConfig& config : variant_configs()) {
      CAPTURE(config.experts);
      CAPTURE(config.kv_heads);
      check({.scheme = scheme, .config = config});
    }
  }
}

// Without --exact weights and activations become f16, each wrong by 2^-12 of itself at the most
// (measured: logits by 2^-11 of the largest, by 2^-9.4 with experts).
TEST_CASE("a long prompt, and one beside others; without --exact by f16 and matrix products") {
  for (bool exact : {true, false}) {
    for (size_t i : {3u, 5u, 6u}) {  // Falcon-40B's, Mixtral's, LLaMA's
      const ModelConfig config = variant_configs()[i];
      const TempDir dir;
      Pair pair(make_tiny_oq(dir / "tiny.oq", {.scheme = "w4a16g64", .config = config}), 32, exact);
      std::vector<int32_t> rows(70, 0);
      rows[3] = rows[40] = rows[69] = 1;
      pair.step(rows);
      pair.step({0, 1});
      CAPTURE(config.experts);
      CAPTURE(config.kv_heads);
      CAPTURE(exact);
      CHECK(pair.worst() <= (exact ? 1e-3 : pair.spread() / 512));
    }
  }
}

TEST_CASE("what the device cannot do it refuses") {
  const TempDir dir;
  const auto file = make_tiny_oq(dir / "tiny.oq", {.scheme = "w4a8t"});
  CHECK_THROWS_WITH_AS(Decoder(file, make_cuda_backend(), {.context = 20}),
                       doctest::Contains("per-tensor"), Error);
}

TEST_SUITE_END();
