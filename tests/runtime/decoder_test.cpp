#include "runtime/decoder.h"

#include <algorithm>
#include <cmath>
#include <string>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/plain_model.h"
#include "tests/support.h"
#include "tests/tiny_oq.h"
#include "tests/variants.h"

using namespace oq;
using test::PlainModel;
using test::TempDir;
using test::TinyOq;

namespace {

std::vector<int32_t> some_tokens(size_t n, int64_t vocab) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < n; ++i) ids.push_back(int32_t((i * i * 7 + 3 * i + 5) % size_t(vocab)));
  return ids;
}

std::shared_ptr<const File> tiny_file(const TempDir& dir, const char* scheme,
                                      uint32_t weak_columns = 0) {
  TinyOq tiny;
  tiny.scheme = scheme;
  tiny.weak_columns = weak_columns;
  return test::make_tiny_oq(dir / "m.oq", tiny);
}

Decoder decoder(const std::shared_ptr<const File>& file, bool exact, int threads = 2,
                int64_t max_rows = 256, int64_t sequences = 1) {
  return Decoder(file, make_cpu_backend(threads),
                 {.sequences = sequences, .max_rows = max_rows, .exact = exact});
}

/// Logits after every token, in steps of `step` tokens.
std::vector<std::vector<float>> all_logits(Decoder& d, const std::vector<int32_t>& tokens,
                                           size_t step, int32_t sequence = 0) {
  std::vector<std::vector<float>> rows;
  for (size_t first = 0; first < tokens.size(); first += step) {
    const size_t n = std::min(step, tokens.size() - first);
    std::vector<int32_t> positions, sequences(n, sequence), wanted;
    for (size_t i = 0; i < n; ++i) {
      positions.push_back(int32_t(first + i));
      wanted.push_back(int32_t(i));
    }
    d.step({.tokens = std::span(tokens).subspan(first, n),
            .positions = positions,
            .sequences = sequences,
            .logit_rows = wanted});
    for (size_t i = 0; i < n; ++i) {
      const auto logits = d.logits(int64_t(i));
      rows.emplace_back(logits.begin(), logits.end());
    }
  }
  return rows;
}

double worst(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b) {
  REQUIRE(a.size() == b.size());
  double w = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t j = 0; j < a[i].size(); ++j) {
      const double d = std::fabs(double(a[i][j]) - double(b[i][j]));
      if (!(d <= w)) w = d;
    }
  }
  return w;
}

double nmse(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t j = 0; j < a[i].size(); ++j) {
      error += std::pow(double(a[i][j]) - double(b[i][j]), 2);
      norm += std::pow(double(b[i][j]), 2);
    }
  }
  return error / norm;
}

}  // namespace

TEST_CASE("the decoder computes what the formulas say, for every scheme and variant") {
  TempDir dir;
  std::vector<TinyOq> variants(3);
  variants[1].config.tied_head = true;
  variants[1].config.qkv_bias = variants[1].config.mlp_bias = true;
  variants[1].config.activation = Activation::gelu_tanh;
  variants[1].config.rope_attention_factor = 1.3;
  variants[2].config.o_bias = true;
  variants[2].config.kv_heads = 6;
  variants[2].config.rope_dim = 20;
  variants[2].config.activation = Activation::relu;
  for (const char* scheme :
       {"w4a16g64", "w3a16", "w2*a16g32", "w8a16g32", "w5a8", "w4a6t", "w4a16q6kv8"}) {
    TinyOq& tiny = variants.emplace_back();
    tiny.scheme = scheme;
    tiny.weak_columns = scheme[1] == '3' ? 4 : 0;
  }
  for (const ModelConfig& config : test::variant_configs()) {
    for (const char* scheme : {"w16a16", "w4a16g32"}) {
      TinyOq& tiny = variants.emplace_back();
      tiny.config = config;
      tiny.scheme = scheme;
    }
  }
  for (const char* scheme : {"w16a16q8kv8", "w4a16q4kv4"}) {  // OPT's, and grouped queries
    for (const ModelConfig& config : {test::variant_configs()[0], test::tiny_config()}) {
      TinyOq& tiny = variants.emplace_back();
      tiny.config = config;
      tiny.scheme = scheme;
      tiny.heads_share_range = true;
    }
  }
  for (const TinyOq& tiny : variants) {
    CAPTURE(tiny.scheme);
    CAPTURE(&tiny - variants.data());
    const auto file = test::make_tiny_oq(dir / "m.oq", tiny);
    const auto tokens = some_tokens(40, tiny.config.vocab);
    Decoder d = decoder(file, true);
    const auto truth = PlainModel(file).run(tokens);
    const auto logits = all_logits(d, tokens, 40);
    const Scheme scheme = Scheme::parse(tiny.scheme);
    if (scheme.activation_bits == 16 && scheme.kv_bits == 16) {
      CHECK(worst(logits, truth) < 1e-4);
    } else {  // an activation whose rounding falls the other way moves logits by a whole code
      CHECK(nmse(logits, truth) < 1e-3);
    }
  }
}

TEST_CASE("a range over all heads is another result than one of each, where anything has one") {
  TempDir dir;
  TinyOq tiny;
  const auto tokens = some_tokens(40, tiny.config.vocab);
  for (const char* scheme : {"w4a16", "w4a16q4", "w4a16kv4", "w4a16q4kv4"}) {
    CAPTURE(scheme);
    tiny.scheme = scheme;
    std::vector<std::vector<float>> logits[2];
    for (const bool share : {false, true}) {
      tiny.heads_share_range = share;
      const auto file = test::make_tiny_oq(dir / "m.oq", tiny);
      CHECK(Scheme::load(*file).heads_share_range == share);
      Decoder d = decoder(file, true);
      logits[share ? 1 : 0] = all_logits(d, tokens, 40);
      Decoder single = decoder(file, true, 1);
      CHECK(worst(all_logits(single, tokens, 1), logits[share ? 1 : 0]) == 0.0);
    }
    CHECK((nmse(logits[1], logits[0]) > 1e-2) == (std::string(scheme) != "w4a16"));
  }
}

TEST_CASE("prefill equals token by token, bit for bit, exact or not") {
  TempDir dir;
  for (const char* scheme : {"w16a16", "w4a16g64", "w3a16"}) {
    const auto file = tiny_file(dir, scheme, 3);
    const auto tokens = some_tokens(300, 101);  // more than one stretch of attention
    for (const bool exact : {true, false}) {
      Decoder whole = decoder(file, exact, 2, 300), pieces = decoder(file, exact, 1);
      const auto expected = all_logits(whole, tokens, 300);
      for (size_t step : {size_t(1), size_t(7), size_t(128)}) {
        pieces.truncate(0);
        CHECK(worst(all_logits(pieces, tokens, step), expected) == 0.0);
      }
    }
  }
}

TEST_CASE("prefill equals token by token for every variant, beside other sequences") {
  TempDir dir;
  for (const ModelConfig& config : test::variant_configs()) {
    TinyOq tiny;
    tiny.config = config;
    tiny.scheme = "w4a16g32";
    const auto file = test::make_tiny_oq(dir / "m.oq", tiny);
    const auto tokens = some_tokens(300, 101);
    Decoder whole = decoder(file, false, 2, 300, 2), pieces = decoder(file, false, 1, 256, 2);
    const auto expected = all_logits(whole, tokens, 300);
    all_logits(pieces, some_tokens(11, 101), 11, 1);
    for (size_t step : {size_t(1), size_t(13)}) {
      pieces.truncate(0);
      CHECK(worst(all_logits(pieces, tokens, step), expected) == 0.0);
    }
  }
}

TEST_CASE("equal experts compute what one MLP does") {
  TempDir dir;
  TinyOq dense, mixed;
  mixed.config.experts = 4;
  mixed.config.experts_used = 2;
  mixed.equal_experts = true;
  const auto a = test::make_tiny_oq(dir / "dense.oq", dense);
  const auto b = test::make_tiny_oq(dir / "mixed.oq", mixed);
  const auto tokens = some_tokens(40, 101);
  Decoder one = decoder(a, true), many = decoder(b, true);
  CHECK(worst(all_logits(many, tokens, 40), all_logits(one, tokens, 40)) < 1e-4);
  // Of four equal experts a token reads two.
  const double mlp =
      double(linear_bytes(*b, mixed.config).bytes - linear_bytes(*a, dense.config).bytes) / 3;
  CHECK(double(many.bytes_per_token()) - double(one.bytes_per_token()) ==
        doctest::Approx(mlp + 2 * 4.0 * 4 * 72).epsilon(1e-6));
}

TEST_CASE("1, 2 and 3 threads agree bit for bit") {
  TempDir dir;
  const auto file = tiny_file(dir, "w4a16g32");
  const auto tokens = some_tokens(290, 101);
  Decoder one = decoder(file, false, 1);
  const auto expected = all_logits(one, tokens, 64);
  for (int threads : {2, 3}) {
    Decoder many = decoder(file, false, threads);
    CHECK(worst(all_logits(many, tokens, 64), expected) == 0.0);
  }
}

TEST_CASE("sequences of one batch do not see each other") {
  TempDir dir;
  const auto file = tiny_file(dir, "w4a16g32");
  const auto a = some_tokens(20, 101), b = some_tokens(20, 53);
  Decoder alone = decoder(file, false);
  const auto expect_a = all_logits(alone, a, 1);
  alone.truncate(0);
  const auto expect_b = all_logits(alone, b, 1);
  Decoder both = decoder(file, false, 2, 256, 3);
  std::vector<std::vector<float>> got_a, got_b;
  for (size_t i = 0; i < a.size(); ++i) {
    const int32_t tokens[] = {b[i], a[i]}, positions[] = {int32_t(i), int32_t(i)};
    const int32_t sequences[] = {2, 0}, rows[] = {0, 1};
    both.step(
        {.tokens = tokens, .positions = positions, .sequences = sequences, .logit_rows = rows});
    got_b.emplace_back(both.logits(0).begin(), both.logits(0).end());
    got_a.emplace_back(both.logits(1).begin(), both.logits(1).end());
  }
  CHECK(worst(got_a, expect_a) == 0.0);
  CHECK(worst(got_b, expect_b) == 0.0);
  CHECK(both.length(0) == 20);
  CHECK(both.length(1) == 0);
}

TEST_CASE("going back forgets what came after") {
  TempDir dir;
  const auto file = test::make_tiny_oq(dir / "m.oq");
  const auto tokens = some_tokens(30, 101);
  Decoder d = decoder(file, false);
  const auto expected = all_logits(d, tokens, 30);
  d.truncate(10);
  d.feed(some_tokens(5, 7));
  d.truncate(10);
  const auto last = d.feed(std::span(tokens).subspan(10));
  CHECK(std::equal(last.begin(), last.end(), expected.back().begin()));
}

TEST_CASE("int8 activations stay close to exact ones") {
  TempDir dir;
  for (const char* scheme : {"w4a16g32", "w8a16g32", "w2a16g32"}) {
    const auto file = tiny_file(dir, scheme);
    const auto tokens = some_tokens(30, 101);
    Decoder exact = decoder(file, true), fast = decoder(file, false);
    const auto a = all_logits(exact, tokens, 30), b = all_logits(fast, tokens, 30);
    std::vector<double> errors;
    for (size_t t = 0; t < a.size(); ++t) errors.push_back(nmse({b[t]}, {a[t]}));
    std::sort(errors.begin(), errors.end());
    // The median, for where two keys nearly tie one token may fall to the other side.
    CHECK(errors[errors.size() / 2] < 1e-3);
    CHECK(errors.back() > 0);  // they are different computations
  }
}

TEST_CASE("a KV cache of codes: the option wins over the scheme, bytes shrink, paths agree") {
  TempDir dir;
  const auto tokens = some_tokens(40, 101);
  const auto with = [&](const char* scheme, int kv_bits) {
    return Decoder(tiny_file(dir, scheme), make_cpu_backend(2),
                   {.max_rows = 64, .exact = true, .kv_bits = kv_bits});
  };
  Decoder full = with("w16a16", 0), half = with("w16a16", 16), eight = with("w16a16", 8);
  CHECK(full.kv_bits() == 32);
  CHECK(full.kv_bytes(9) == 2 * half.kv_bytes(9));
  const auto head_dim = uint64_t(full.config().head_dim);
  CHECK(eight.kv_bytes(9) * 2 * head_dim == half.kv_bytes(9) * (head_dim + 4));
  const auto truth = all_logits(full, tokens, 40), codes = all_logits(eight, tokens, 40);
  CHECK(nmse(codes, truth) < 1e-3);
  CHECK(codes != truth);
  CHECK(codes == all_logits(eight, tokens, 7));
  Decoder four = with("w16a16", 4), named = with("w16a16kv4", 0), over = with("w16a16kv4", 32);
  CHECK(named.kv_bits() == 4);
  CHECK(all_logits(named, tokens, 40) == all_logits(four, tokens, 40));
  CHECK(all_logits(over, tokens, 40) == truth);
  for (const int none : {-1, 1, 9, 24}) CHECK_THROWS_AS(with("w16a16", none), Error);
}

TEST_CASE("what weights and cache lie on changes no bit") {
  TempDir dir;
  const auto mapped = tiny_file(dir, "w4a16g32");
  const auto tokens = some_tokens(290, 101);
  Decoder small = decoder(mapped, false);
  Decoder huge = decoder(File::open(mapped->path(), Pages::huge), false);
  CHECK(all_logits(huge, tokens, 64) == all_logits(small, tokens, 64));
}

TEST_CASE("bad steps are refused and change nothing") {
  TempDir dir;
  const auto file = test::make_tiny_oq(dir / "m.oq");
  Decoder d(file, make_cpu_backend(1), {.context = 8, .max_rows = 4});
  d.feed(some_tokens(3, 101));
  const auto refuses = [&](std::vector<int32_t> tokens, std::vector<int32_t> positions,
                           std::vector<int32_t> sequences, std::vector<int32_t> rows) {
    CHECK_THROWS_AS(
        d.step(
            {.tokens = tokens, .positions = positions, .sequences = sequences, .logit_rows = rows}),
        Error);
    CHECK(d.length() == 3);
  };
  refuses({}, {}, {}, {});
  refuses({1, 1, 1, 1, 1}, {3, 4, 5, 6, 7}, {0, 0, 0, 0, 0}, {});
  refuses({1}, {4}, {0}, {});  // a gap
  refuses({1}, {-1}, {0}, {});
  refuses({1, 1}, {3, 8}, {0, 0}, {});
  refuses({101}, {3}, {0}, {});
  refuses({-1}, {3}, {0}, {});
  refuses({1}, {3}, {1}, {});
  refuses({1}, {3}, {0}, {1});
  refuses({1, 1}, {3, 4}, {0, 0}, {1, 0});
  refuses({1, 1}, {3}, {0, 0}, {});
  refuses({1, 1}, {3, 3}, {0, 0}, {});  // twice the same place
  refuses({1, 1}, {3, 2}, {0, 0}, {});  // back inside a step
  CHECK_THROWS_AS(d.logits(1), Error);
  CHECK_THROWS_AS(d.length(1), Error);
  CHECK_THROWS_WITH_AS(d.feed(some_tokens(6, 101)), doctest::Contains("--ctx"), Error);
  CHECK_THROWS_AS(d.feed({}), Error);
  d.feed(some_tokens(5, 101));
  CHECK(d.length() == 8);
  CHECK_THROWS_AS(Decoder(file, make_cpu_backend(1), {.context = 701}), Error);
}

TEST_CASE("what is asked of the logits is held to how many there are") {
  TempDir dir;
  Decoder d = decoder(test::make_tiny_oq(dir / "m.oq"), true);
  const auto logits = d.feed(some_tokens(3, 101));
  const auto best = [&](int64_t vocab) {
    return std::max_element(logits.begin(), logits.begin() + vocab) - logits.begin();
  };
  for (const bool greedy : {true, false}) {  // by rank, and from all logits
    Sampler sampler(greedy ? SamplerParams{.temperature = 0} : SamplerParams{.min_p = 1});
    for (const int64_t vocab : {1, 50, 101}) CHECK(d.sample(sampler, vocab) == best(vocab));
    for (const int64_t vocab : {-1, 0, 102}) {
      CAPTURE(vocab);
      CHECK_THROWS_WITH_AS(d.sample(sampler, vocab), doctest::Contains("expected 1 to 101"), Error);
    }
  }
  const std::vector<int32_t> also = {100, 0}, beyond = {0, 101}, negative = {-1};
  CHECK(d.rank({.vocab = 101, .also = also}).also == std::vector<float>{logits[100], logits[0]});
  const auto refuses = [&](const RankRequest& request, const char* found) {
    CHECK_THROWS_WITH_AS(d.rank(request), doctest::Contains(found), Error);
    Ranking out;
    CHECK_THROWS_WITH_AS(rank_logits(logits, request, out), doctest::Contains(found), Error);
  };
  refuses({.vocab = 102}, "expected 1 to 101, found 102");
  refuses({.vocab = -5}, "found -5");
  refuses({.vocab = 101, .count = 0}, "expected 1 to 128, found 0");
  refuses({.vocab = 101, .count = kMostRanked + 1}, "found 129");
  refuses({.vocab = 101, .also = beyond}, "expected 0 to 100, found 101");
  refuses({.vocab = 100, .also = also}, "expected 0 to 99, found 100");
  refuses({.vocab = 101, .also = negative}, "found -1");
  const std::vector<int32_t> many(kMostRanked + 1, 0);
  refuses({.vocab = 101, .also = many}, "expected 0 to 128, found 129");
}

TEST_CASE("models whose tensors do not fit their config are refused by name") {
  TempDir dir;
  test::make_tiny_oq(dir / "m.oq");
  const auto edit = [&](const char* key, Metadata::Value value) {
    test::make_tiny_oq(dir / "m.oq");
    Metadata m = File::open(dir / "m.oq")->metadata();
    m.set(key, std::move(value));
    rewrite_metadata(dir / "m.oq", m);
    std::string message = "opened";
    try {
      decoder(File::open(dir / "m.oq"), true);
    } catch (const Error& e) {
      message = e.what();
    }
    return message;
  };
  CHECK(edit("model.vocab", int64_t(102)).find("'embedding'") != std::string::npos);
  CHECK(edit("model.blocks", int64_t(3)).find("'blocks.2.attn_norm'") != std::string::npos);
  CHECK(edit("model.heads", int64_t(5)).find("heads") != std::string::npos);
  CHECK(edit("model.kv_heads", int64_t(3)).find("'blocks.0.k'") != std::string::npos);
  CHECK(edit("model.hidden", int64_t(-1)).find("model.hidden") != std::string::npos);
  CHECK(edit("model.norm_eps", NAN).find("norm_eps") != std::string::npos);
  CHECK(edit("model.rope_dim", int64_t(15)).find("rotated") != std::string::npos);
  CHECK(edit("model.activation", std::string("tanh")).find("activation") != std::string::npos);
  CHECK(edit("model.positions", std::string("alibi")).find("rope_dim") != std::string::npos);
  CHECK(edit("model.norm", std::string("layer")).find("attn_norm.bias'") != std::string::npos);
  CHECK(edit("model.experts", int64_t(3)).find("experts") != std::string::npos);
  CHECK(edit("model.shared_norm", true).find("parallel") != std::string::npos);
  CHECK(edit("scheme", std::string("w4")).find("scheme") != std::string::npos);
  for (const Metadata::Value& bad : {Metadata::Value(std::string("row")), Metadata::Value(true)}) {
    const std::string message = edit("attention.range", bad);
    CHECK(message.find("m.oq") != std::string::npos);
    CHECK(message.find("'attention.range'") != std::string::npos);
  }
  CHECK(edit("attention.range", std::string("token")) == "opened");
  CHECK(edit("model.family", std::string("other")) == "opened");
}
