// The same input gives the same bytes and tokens: again, and on any number of threads.

#include "tests/tools/tools.h"

using namespace oq;
using namespace oq::test;

namespace {

constexpr const char* kPrompt = "the cat and the dog of the house in 1984";

nlohmann::json answer(const std::string& model, const std::vector<std::string>& more,
                      const Setting& setting = {}) {
  std::vector<std::string> args = {model, "-p", kPrompt, "-n", "24"};
  args.insert(args.end(), more.begin(), more.end());
  return oq_json("run", args, setting);
}

}  // namespace

TEST_CASE("oq-convert writes the same bytes on repeat and on 1 and 2 threads") {
  const Models& m = models();
  const TempDir dir;
  const auto convert = [&](const std::string& from, const std::string& scheme,
                           const std::string& threads) {
    const auto r = run_oq("convert", {from, "-o", dir / "out.oq", "--scheme", scheme, "--threads",
                                      threads, "--quiet"});
    REQUIRE_MESSAGE(r.code == 0, r.err);
    return read_file(dir / "out.oq");
  };
  for (const char* threads : {"1", "2"}) {
    CHECK(convert(m.hf, "w16a16", threads) == read_file(m.f16));
    CHECK(convert(m.gguf, "w4a16g32", threads) == read_file(m.w4));
  }
}

TEST_CASE("oq-run gives the same tokens and logits on repeat and on 1 and 2 threads") {
  const Models& m = models();
  for (const std::string& model : {m.f16, m.w4}) {
    for (const std::vector<std::string>& flags : {std::vector<std::string>{},
                                                  {"--exact"},
                                                  {"--kv", "8"},
                                                  {"--temperature", "0.9", "--seed", "7"}}) {
      std::vector<std::string> two = flags;
      two.insert(two.end(), {"--threads", "2"});
      const auto first = answer(model, flags);
      CHECK(first["tokens"].size() > 2);
      for (const auto& other : {answer(model, flags), answer(model, two)}) {
        CHECK(other["tokens"] == first["tokens"]);
        CHECK(other["logits_hash"] == first["logits_hash"]);
      }
    }
  }
}

TEST_CASE("another seed gives another sample, and another model other logits") {
  const Models& m = models();
  const auto seeded = [&](const char* seed) {
    return answer(m.f16, {"--temperature", "1", "--seed", seed})["tokens"];
  };
  CHECK(seeded("1") != seeded("2"));
  CHECK(answer(m.f16, {})["logits_hash"] != answer(m.w4, {})["logits_hash"]);
}

TEST_CASE("scalar kernels choose the tokens that the best ones do") {
  const Models& m = models();
  for (const std::string& model : {m.f16, m.w4}) {
    CHECK(answer(model, {"--exact"}, {.environment = {{"OQ_CPU", "scalar"}}})["tokens"] ==
          answer(model, {"--exact"})["tokens"]);
  }
  check_fails("run", {m.f16, "-p", kPrompt}, {"OQ_CPU", "scalar", "abacus"},
              {.environment = {{"OQ_CPU", "abacus"}}});
}

TEST_CASE("oq-eval gives the same perplexity on repeat and on 1 and 2 threads") {
  const Models& m = models();
  const auto perplexity = [&](const char* threads) {
    return oq_json("eval", {m.w4, "--perplexity", m.text, "--window", "64", "--threads",
                            threads})["results"][0]["window_nll"];
  };
  const auto first = perplexity("1");
  CHECK(perplexity("1") == first);
  CHECK(perplexity("2") == first);
}
