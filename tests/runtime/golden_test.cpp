/// SmolLM2-135M against HF transformers (golden/make_logits.py): the whole way from the published
/// GGUF to logits. Needs the model: the environment variable OQ_SMOLLM2_GGUF names it.

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <numeric>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "runtime/decoder.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/process.h"
#include "tests/support.h"
#include "tools/eval/perplexity.h"

using namespace oq;
using test::TempDir;

namespace {

std::optional<std::string> smollm2() {
  const char* path = std::getenv("OQ_SMOLLM2_GGUF");
  if (path != nullptr && std::filesystem::exists(path)) return path;
  std::fprintf(stderr, "SKIPPED: needs OQ_SMOLLM2_GGUF, the model that scripts/demo.sh fetches\n");
  return std::nullopt;
}

nlohmann::json golden() {
  return nlohmann::json::parse(std::ifstream(test::golden("smollm2_logits.json")));
}

std::filesystem::path convert(const std::string& gguf, const TempDir& dir,
                              const std::string& scheme) {
  const auto out = dir / (scheme + ".oq");
  const auto result = test::run(
      {test::tool("oq-convert"), gguf, "-o", out.string(), "--scheme", scheme, "--quiet"});
  REQUIRE(result.code == 0);
  return out;
}

Decoder decoder(const std::filesystem::path& path, bool exact) {
  return Decoder(File::open(path), make_cpu_backend(0), {.context = 512, .exact = exact});
}

std::vector<int32_t> wikitext_ids(const File& file, size_t n) {
  const auto path = test::data("text/wikitext2-raw.test.txt");
  if (!path) return {};
  std::string text = test::read_file(*path);
  text.resize(std::min<size_t>(text.size(), 300000));
  auto ids = Tokenizer::load(file)->encode(text, false);
  REQUIRE(ids.size() >= n);
  ids.resize(n);
  return ids;
}

double perplexity(const std::filesystem::path& path, bool exact, int64_t windows) {
  const auto ids = wikitext_ids(*File::open(path), size_t(windows) * 512);
  Decoder d = decoder(path, exact);
  return measure_perplexity(d, ids, 512, windows, [](int64_t) {}).perplexity;
}

}  // namespace

TEST_SUITE("data") {
  TEST_CASE("logits equal HF transformers' within 2e-2, with the same five largest") {
    const auto gguf = smollm2();
    if (!gguf) return;
    const TempDir dir;
    Decoder d = decoder(convert(*gguf, dir, "w16a16"), true);
    const auto truth = golden();
    const auto stride = truth["stride"].get<size_t>();
    for (const auto& prompt : truth["prompts"]) {
      const auto ids = prompt["ids"].get<std::vector<int32_t>>();
      for (const auto& place : prompt["places"]) {
        d.truncate(0);
        const auto logits = d.feed(std::span(ids).first(place["position"].get<size_t>() + 1));
        const auto every = place["every"].get<std::vector<float>>();
        for (size_t i = 0; i < every.size(); ++i) {
          REQUIRE(std::fabs(logits[i * stride] - every[i]) <= 2e-2f);
        }
        std::vector<int32_t> order(logits.size());
        std::iota(order.begin(), order.end(), 0);
        std::partial_sort(order.begin(), order.begin() + 5, order.end(), [&](int32_t a, int32_t b) {
          return logits[size_t(a)] > logits[size_t(b)];
        });
        order.resize(5);
        CHECK(order == place["top_ids"].get<std::vector<int32_t>>());
      }
    }
  }

  TEST_CASE("perplexity of 20 windows equals HF transformers' within 0.1 %") {
    const auto gguf = smollm2();
    if (!gguf || !test::data("text/wikitext2-raw.test.txt")) return;
    const TempDir dir;
    const auto nll = golden()["window_nll"].get<std::vector<double>>();
    const double truth =
        std::exp(std::accumulate(nll.begin(), nll.end(), 0.0) / double(nll.size()));
    const double ours = perplexity(convert(*gguf, dir, "w16a16"), true, int64_t(nll.size()));
    CHECK(ours == doctest::Approx(truth).epsilon(1e-3));
  }

  TEST_CASE("int8 activations change perplexity by less than 0.3 %") {
    const auto gguf = smollm2();
    if (!gguf || !test::data("text/wikitext2-raw.test.txt")) return;
    const TempDir dir;
    const auto path = convert(*gguf, dir, "w4a16g64");
    CHECK(perplexity(path, false, 20) == doctest::Approx(perplexity(path, true, 20)).epsilon(3e-3));
  }

  TEST_CASE("opening is quick and memory stays small") {
    const auto gguf = smollm2();
    if (!gguf) return;
    const TempDir dir;
    const auto path = convert(*gguf, dir, "w4a16g64");
    const auto r = test::run({test::tool("oq-run"), path.string(), "-p", "Once upon a time", "-n",
                              "64", "--ctx", "512"});
    REQUIRE(r.code == 0);
    const size_t end = r.err.find(" MiB of its own memory");
    REQUIRE(end != std::string::npos);
    const double mib = std::stod(r.err.substr(r.err.rfind(' ', end - 1) + 1));
    const double kv = 2.0 * 30 * 192 * 512 * 2 / (1 << 20);
    CHECK(mib < 0.1 * double(std::filesystem::file_size(path)) / (1 << 20) + kv + 8);
  }
}
