/// Every family against HF transformers (golden/make_families.py): converted without rounding and
/// run in fp32, the tiny models give transformers' logits at every position.

#include <algorithm>
#include <cmath>
#include <filesystem>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "runtime/decoder.h"
#include "tests/process.h"
#include "tests/support.h"

using namespace oq;
using test::TempDir;

namespace {

namespace fs = std::filesystem;
using Logits = std::vector<std::vector<float>>;  // [position][vocab]

struct Golden {
  std::string name;
  std::shared_ptr<const File> file;
  std::vector<int32_t> ids;
  Logits logits;
};

Golden load(const std::string& name, const TempDir& dir) {
  const fs::path folder = test::golden("families") / name, out = dir / (name + ".oq");
  const auto r = test::run(
      {test::tool("oq-convert"), folder.string(), "-o", out.string(), "--dtype", "f32", "--quiet"});
  REQUIRE_MESSAGE(r.code == 0, r.err);
  const auto truth = nlohmann::json::parse(test::read_file(folder / "golden.json"));
  return {name, File::open(out), truth["ids"].get<std::vector<int32_t>>(),
          truth["logits"].get<Logits>()};
}

std::vector<Golden> load_all(const TempDir& dir) {
  std::vector<Golden> all;
  for (const auto& entry : fs::directory_iterator(test::golden("families"))) {
    if (entry.is_directory()) all.push_back(load(entry.path().filename().string(), dir));
  }
  std::sort(all.begin(), all.end(), [](auto& a, auto& b) { return a.name < b.name; });
  REQUIRE(all.size() >= 15);
  return all;
}

Decoder decoder(const Golden& g, bool exact = true, int64_t sequences = 1) {
  return Decoder(g.file, make_cpu_backend(2),
                 {.context = 48, .sequences = sequences, .max_rows = 64, .exact = exact});
}

/// Tokens of several sequences, each from its own position on, in one step; all their logits.
Logits step(Decoder& d, const std::vector<std::vector<int32_t>>& tokens,
            const std::vector<int64_t>& positions) {
  std::vector<int32_t> all, position, sequence, rows;
  for (size_t s = 0; s < tokens.size(); ++s) {
    for (size_t i = 0; i < tokens[s].size(); ++i) {
      rows.push_back(int32_t(all.size()));
      all.push_back(tokens[s][i]);
      position.push_back(int32_t(positions[s] + int64_t(i)));
      sequence.push_back(int32_t(s));
    }
  }
  d.step({all, position, sequence, rows});
  Logits out;
  for (size_t i = 0; i < all.size(); ++i) {
    const auto logits = d.logits(int64_t(i));
    out.emplace_back(logits.begin(), logits.end());
  }
  return out;
}

Logits prefill(const Golden& g, bool exact = true) {
  Decoder d = decoder(g, exact);
  return step(d, {g.ids}, {0});
}

double worst(const Logits& a, const Logits& b) {
  REQUIRE(a.size() == b.size());
  double w = 0;
  for (size_t t = 0; t < a.size(); ++t) {
    REQUIRE(a[t].size() == b[t].size());
    for (size_t i = 0; i < a[t].size(); ++i) {
      const double difference = std::fabs(double(a[t][i]) - double(b[t][i]));
      if (!(difference <= w)) w = difference;  // a NaN stays
    }
  }
  return w;
}

}  // namespace

TEST_CASE("f32 logits equal transformers' within 1e-4 at every position") {
  const TempDir dir;
  for (const Golden& g : load_all(dir)) {
    CAPTURE(g.name);
    const double w = worst(prefill(g), g.logits);
    CHECK(w <= 1e-4);
  }
}

TEST_CASE("prefill gives the bits of token by token") {
  const TempDir dir;
  for (const Golden& g : load_all(dir)) {
    CAPTURE(g.name);
    for (const bool exact : {true, false}) {
      CAPTURE(exact);
      Decoder d = decoder(g, exact);
      Logits one_by_one;
      for (size_t t = 0; t < g.ids.size(); ++t) {
        one_by_one.push_back(step(d, {{g.ids[t]}}, {int64_t(t)}).front());
      }
      CHECK(one_by_one == prefill(g, exact));
    }
  }
}

TEST_CASE("three sequences fed together give the bits of each alone") {
  const TempDir dir;
  for (const Golden& g : load_all(dir)) {
    CAPTURE(g.name);
    const auto begin = g.ids.begin();
    const std::vector<std::vector<int32_t>> prompts = {
        {begin, begin + 11}, {begin + 11, begin + 30}, {begin + 30, begin + 37}};
    const std::vector<int32_t> next = {g.ids[37], g.ids[38], g.ids[39]};
    Logits alone_prompt, alone_next;
    for (size_t s = 0; s < prompts.size(); ++s) {
      Decoder d = decoder(g);
      for (auto& row : step(d, {prompts[s]}, {0})) alone_prompt.push_back(std::move(row));
      alone_next.push_back(step(d, {{next[s]}}, {int64_t(prompts[s].size())}).front());
    }
    Decoder d = decoder(g, true, 3);
    CHECK(step(d, prompts, {0, 0, 0}) == alone_prompt);
    CHECK(step(d, {{next[0]}, {next[1]}, {next[2]}}, {11, 19, 7}) == alone_next);
  }
}

TEST_CASE("Mixtral with equal experts is the dense model") {
  const TempDir dir;
  const Golden experts = load("mixtral-equal-experts", dir);
  const Golden dense = load("mixtral-dense-twin", dir);
  REQUIRE(experts.ids == dense.ids);
  REQUIRE(ModelConfig::load(*experts.file).experts == 3);
  CHECK(worst(prefill(experts), prefill(dense)) <= 1e-5);
}

TEST_CASE("what a family adds to the model is seen in the logits") {
  // A sliding window forgets: the first token matters to position 8, not to position 20.
  const TempDir dir;
  Golden g = load("mistral-window", dir);
  const Logits before = prefill(g);
  g.ids[0] = g.ids[0] == 5 ? 6 : 5;
  const Logits after = prefill(g);
  CHECK(before[8] != after[8]);
  CHECK(before[20] == after[20]);  // two blocks of 9 reach back 16 positions
}
