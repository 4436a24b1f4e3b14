#include "tools/eval/model_scorer.h"

#include <doctest/doctest.h>

#include "tests/eval/models.h"
#include "tools/eval/logits.h"
#include "tools/eval/windows.h"

using namespace oq;
using doctest::Approx;
using test::models;

namespace {

const auto kNoProgress = [](int64_t) {};

Model model(const std::string& path, bool exact = false) {
  return Model(path, {.backend = {"cpu", 2}, .exact = exact});
}

/// Questions of two to four choices with long and short, equal and different contexts.
std::vector<Request> some_requests() {
  std::vector<Request> requests;
  for (int q = 0; q < 23; ++q) {
    std::string context = "Question: what is in the house of the user, " + std::to_string(q);
    for (int i = 0; i < q % 5; ++i) context += " and the other";
    for (int c = 0; c < 2 + q % 3; ++c) {
      std::string choice = " the";
      for (int i = 0; i < c * (q % 4); ++i) choice += " cat of " + std::to_string(c);
      requests.push_back({context, choice});
    }
  }
  return requests;
}

/// One request in a decoder of its own, all in one step from an empty cache.
Score alone(const Model& m, const Request& request, bool exact = false) {
  const EncodedRequest e =
      encode_request(m.tokenizer(), request, Harness::joint, false, m.config().context);
  std::vector<int32_t> ids = e.context;
  ids.insert(ids.end(), e.continuation.begin(), e.continuation.end());
  const auto fed = int64_t(ids.size()) - 1;
  Decoder d(File::open(m.path()), make_cpu_backend(1),
            {.context = fed, .max_rows = fed, .exact = exact});
  step_with_logits(d, std::span(ids).first(size_t(fed)), 0);
  Score score{.log_likelihood = 0, .greedy = true};
  for (size_t i = e.context.size(); i < ids.size(); ++i) {
    const auto logits = d.logits(int64_t(i) - 1);
    score.log_likelihood -= negative_log_likelihood(logits, ids[i]);
    score.greedy = score.greedy && best_token(logits) == ids[i];
  }
  return score;
}

}  // namespace

TEST_CASE("a context that goes through once gives what whole requests give") {
  const auto requests = some_requests();
  for (const std::string& path : {models().f16, models().w3, models().per_tensor}) {
    for (const bool exact : {false, true}) {
      CAPTURE(path);
      const Model m = model(path, exact);
      int64_t done = 0;
      const auto scores =
          ModelScorer(m, Harness::joint, false).score(requests, [&](int64_t n) { done += n; });
      CHECK(done == int64_t(requests.size()));
      REQUIRE(scores.size() == requests.size());
      for (size_t i = 0; i < requests.size(); ++i) {
        const Score whole = alone(m, requests[i], exact);
        CHECK(scores[i].log_likelihood == whole.log_likelihood);
        CHECK(scores[i].greedy == whole.greedy);
      }
    }
  }
}

TEST_CASE("greedy means that decoding writes the continuation") {
  const Model m = model(models().f16);
  const Tokenizer& t = m.tokenizer();
  ModelScorer scorer(m, Harness::separate, false);
  const auto greedy = [&](const std::string& context, const std::string& continuation) {
    return scorer.score(std::vector<Request>{{context, continuation}}, kNoProgress)[0].greedy;
  };
  int asked = 0;
  for (int i = 0; i < 40; ++i) {
    const std::string context = "the cat and the dog " + std::to_string(i);
    Decoder d = m.decoder(100, 100);
    const int32_t first = best_token(d.feed(t.encode(context, false)));
    const int32_t second = best_token(d.feed({&first, 1}));
    const std::string both = t.token_bytes(first) + t.token_bytes(second);
    // Random weights write what no text leads to, most often.
    if (t.encode(both, false) != std::vector<int32_t>{first, second}) continue;
    ++asked;
    CHECK(greedy(context, both));
    CHECK(greedy(context, t.token_bytes(first)));
    CHECK_FALSE(greedy(context, t.token_bytes(first) + (both.back() == 'x' ? "y" : "x")));
    CHECK_FALSE(greedy(context, (both.front() == 'x' ? "y" : "x") + t.token_bytes(second)));
  }
  CHECK(asked > 0);
}

TEST_CASE("encoding: jointly, and each for itself") {
  const Model m = model(models().f16);
  const Tokenizer& t = m.tokenizer();
  const auto encode = [&](const Request& r, Harness h, bool bos = false, int64_t room = 300) {
    return encode_request(t, r, h, bos, room);
  };
  const auto ids = [&](const std::string& s) { return t.encode(s, false); };

  // A space at the end belongs to the word behind it: " the" is one token, "the" is not.
  const Request spaced{"of ", "the"};
  CHECK(encode(spaced, Harness::joint).context == ids("of"));
  CHECK(encode(spaced, Harness::joint).continuation == ids(" the"));
  CHECK(encode(spaced, Harness::separate).context == ids("of "));
  CHECK(encode(spaced, Harness::separate).continuation == ids("the"));
  // What merges across the border is cut behind as many tokens as the context has alone.
  const Request merged{"hell", "o the"};
  CHECK(encode(merged, Harness::joint).context == ids("hell"));
  CHECK(encode(merged, Harness::joint).continuation == ids(" the"));
  CHECK(encode(merged, Harness::separate).continuation == ids("o the"));
  CHECK_THROWS_WITH_AS(encode({"hell", "o"}, Harness::joint),
                       doctest::Contains("no tokens of its own"), Error);

  const int32_t eos = t.stop_ids()[0];
  for (const Harness h : {Harness::joint, Harness::separate}) {
    const EncodedRequest e = encode({"", " the"}, h);
    CHECK(e.context == std::vector<int32_t>{eos});
    CHECK(e.continuation == ids(" the"));
    CHECK_THROWS_AS(encode({"of", ""}, h), Error);
    CHECK(encode({"of", " the"}, h, true).context[0] == t.bos());
    CHECK(encode({"of", " the"}, h, true).context.size() == 1 + ids("of").size());
    CHECK(encode({"", " the"}, h, true).context == std::vector<int32_t>{t.bos()});
  }
  CHECK(encode({"  ", "the"}, Harness::joint).context == std::vector<int32_t>{eos});
}

TEST_CASE("a context that is too long loses its beginning, a continuation is refused") {
  const Model m = model(models().f16);
  const auto encode = [&](const Request& r, bool bos, int64_t room) {
    return encode_request(m.tokenizer(), r, Harness::joint, bos, room);
  };
  const Request r{"1234567", "890"};
  const auto whole = encode(r, false, 9);  // ten tokens, of which the last is only predicted
  CHECK(whole.context == m.tokenizer().encode("1234567", false));
  CHECK(encode(r, false, 8).context == m.tokenizer().encode("234567", false));
  CHECK(encode(r, false, 3).context == m.tokenizer().encode("7", false));
  CHECK(encode(r, false, 3).continuation == whole.continuation);
  const auto bos = encode(r, true, 5).context;
  CHECK(bos[0] == m.tokenizer().bos());
  CHECK(std::vector<int32_t>(bos.begin() + 1, bos.end()) == m.tokenizer().encode("67", false));
  CHECK_THROWS_WITH_AS(encode(r, false, 2), doctest::Contains("expected at most 2 tokens, found 3"),
                       Error);

  // The model's own context of 300 tokens is used up to the last one.
  const Request filling{std::string(400, '1'), "22"};
  const auto scores = ModelScorer(m, Harness::joint, false)
                          .score(std::vector<Request>{filling, {"the", " cat"}}, kNoProgress);
  CHECK(scores[0].log_likelihood == alone(m, filling).log_likelihood);
}

TEST_CASE("BOS changes the score") {
  const Model m = model(models().f16);
  const std::vector<Request> r{{"the cat", " and"}};
  const double without =
      ModelScorer(m, Harness::joint, false).score(r, kNoProgress)[0].log_likelihood;
  const double with = ModelScorer(m, Harness::joint, true).score(r, kNoProgress)[0].log_likelihood;
  CHECK(with != Approx(without));
}
