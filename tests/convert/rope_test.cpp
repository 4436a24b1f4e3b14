// RoPE frequencies: config.json's variants against transformers' numbers, GGUF's against them.

#include "tools/convert/rope.h"

#include <cmath>

#include <doctest/doctest.h>

#include "tests/gguf_builder.h"
#include "tests/support.h"
#include "tools/convert/json.h"

using namespace oq;
using namespace oq::convert;
using nlohmann::json;

namespace {

Rope from_json(const json& config, int64_t dim) {
  return hf_rope(JsonConfig(config, "config.json"), dim,
                 config.value("max_position_embeddings", int64_t(2048)));
}

Rope from_gguf(const test::GgufBuilder& builder, int64_t dim, int64_t context,
               std::span<const float> factors = {}) {
  const std::string bytes = builder.bytes();
  const GgufFile file(std::as_bytes(std::span(bytes)), "test.gguf");
  return gguf_rope(GgufConfig(file), "llama", dim, context, factors);
}

double worst_relative(std::span<const float> a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a[i] / b[i] - 1));
  return worst;
}

void check_refused(const json& config, const char* says) {
  try {
    from_json(config, 64);
    FAIL_CHECK("was not refused");
  } catch (const Error& e) {
    CAPTURE(e.what());
    CHECK(std::string(e.what()).find(says) != std::string::npos);
  }
}

}  // namespace

TEST_CASE("config.json's variants equal transformers'") {
  const json cases = read_json(test::golden("rope.json"));
  REQUIRE(cases.size() >= 10);
  for (const json& c : cases) {
    CAPTURE(c["name"].get<std::string>());
    const auto expected = c["inv_freq"].get<std::vector<double>>();
    const Rope rope = from_json(c["config"], int64_t(expected.size() * 2));
    // They compute in single precision, we in double.
    CHECK(worst_relative(rope.inv_freq, expected) < 1e-6);
    CHECK(rope.attention_factor ==
          doctest::Approx(c["attention_factor"].get<double>()).epsilon(1e-9));
  }
}

TEST_CASE("dynamic scaling limits the context and says so") {
  const Rope rope = from_json(
      {{"max_position_embeddings", 2048}, {"rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}}},
      64);
  CHECK(rope.context_limit == 2048);
  CHECK(rope.notice.find("2048") != std::string::npos);
  CHECK(from_json({{"max_position_embeddings", 2048}}, 64).context_limit == 0);
}

TEST_CASE("what cannot be converted is refused by name") {
  check_refused({{"rope_scaling", {{"type", "longrope"}, {"factor", 2.0}}}}, "'longrope'");
  check_refused({{"rope_parameters", {{"rope_type", "proportional"}}}}, "'proportional'");
  check_refused({{"rope_scaling", {{"type", "linear"}}}}, "rope_scaling.factor");
  check_refused({{"rope_scaling", {{"type", "linear"}, {"factor", 0}}}}, "above 0");
  check_refused({{"rope_scaling", {{"type", "linear"}, {"factor", "4"}}}}, "finite number");
  check_refused({{"rope_theta", -1.0}}, "rope_theta");
  const char* original = "original_max_position_embeddings";
  for (const double count : {1e300, 0.5, 4096.5, 0.0, -1.0, 0x1p31}) {
    for (const char* type : {"dynamic", "yarn"}) {
      check_refused({{"rope_scaling", {{"type", type}, {"factor", 2.0}, {original, count}}}},
                    "'rope_scaling.original_max_position_embeddings'");
      check_refused({{"rope_scaling", {{"type", type}, {"factor", 2.0}}}, {original, count}},
                    "'original_max_position_embeddings'");
    }
    test::GgufBuilder yarn;
    yarn.set_string("llama.rope.scaling.type", "yarn");
    yarn.set_f32("llama.rope.scaling.original_context_length", float(count));
    CHECK_THROWS_WITH_AS(from_gguf(yarn, 64, 8192), doctest::Contains("original_context_length"),
                         Error);
  }
}

TEST_CASE("GGUF's linear, yarn and rope_freqs give the same as config.json's") {
  test::GgufBuilder linear;
  linear.set_f32("llama.rope.freq_base", 10000.0f);
  linear.set_string("llama.rope.scaling.type", "linear");
  linear.set_f32("llama.rope.scaling.factor", 4.0f);
  CHECK(from_gguf(linear, 64, 8192).inv_freq ==
        from_json({{"rope_scaling", {{"type", "linear"}, {"factor", 4.0}}}}, 64).inv_freq);

  test::GgufBuilder yarn;
  yarn.set_string("llama.rope.scaling.type", "yarn");
  yarn.set_f32("llama.rope.scaling.factor", 16.0f);
  yarn.set_u32("llama.rope.scaling.original_context_length", 4096);
  const Rope expected = from_json(
      {{"max_position_embeddings", 65536},
       {"rope_scaling",
        {{"type", "yarn"}, {"factor", 16.0}, {"original_max_position_embeddings", 4096}}}},
      64);
  CHECK(from_gguf(yarn, 64, 65536).inv_freq == expected.inv_freq);
  CHECK(from_gguf(yarn, 64, 65536).attention_factor == doctest::Approx(expected.attention_factor));

  test::GgufBuilder plain;
  const std::vector<float> factors(32, 2.0f);
  const Rope halved = from_gguf(plain, 64, 8192, factors), whole = from_gguf(plain, 64, 8192);
  for (size_t i = 0; i < 32; ++i) CHECK(halved.inv_freq[i] == whole.inv_freq[i] / 2);
  CHECK_THROWS_AS(from_gguf(plain, 64, 8192, std::vector<float>(31, 1.0f)), Error);
  CHECK_THROWS_AS(from_gguf(plain, 64, 8192, std::vector<float>(32, 0.0f)), Error);

  test::GgufBuilder longrope;
  longrope.set_string("llama.rope.scaling.type", "longrope");
  CHECK_THROWS_AS(from_gguf(longrope, 64, 8192), Error);
}
