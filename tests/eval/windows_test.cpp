/// Perplexity and divergence over windows of a text, with a tiny model.

#include <algorithm>
#include <cmath>

#include <doctest/doctest.h>

#include "tests/eval/models.h"
#include "tools/eval/divergence.h"
#include "tools/eval/model.h"
#include "tools/eval/perplexity.h"
#include "tools/eval/statistics.h"

using namespace oq;
using doctest::Approx;
using test::models;

namespace {

const auto kNoProgress = [](int64_t) {};
constexpr int64_t kWindow = 48;

Model model(const std::string& path) { return Model(path, {.backend = {"cpu", 2}}); }

std::vector<int32_t> text_ids(const Model& m) {
  return m.encode_text(test::read_file(models().text));
}

Divergence divergence(const std::string& reference, const std::string& path, int64_t rows) {
  const Model a = model(reference), b = model(path);
  Decoder from(File::open(reference), make_cpu_backend(1), {.context = kWindow, .max_rows = rows});
  Decoder to = b.decoder(kWindow, kWindow);
  Decoder* const pointers[] = {&to};
  return measure_divergence(from, pointers, text_ids(a), kWindow, 3, kNoProgress)[0];
}

/// Logits of all but the last token of a window, from an empty cache, token by token.
std::vector<std::vector<float>> window_logits(const Model& m, std::span<const int32_t> ids) {
  Decoder d = m.decoder(int64_t(ids.size()), int64_t(ids.size()));
  std::vector<std::vector<float>> rows;
  for (size_t i = 0; i + 1 < ids.size(); ++i) {
    const auto logits = d.feed(ids.subspan(i, 1));
    rows.emplace_back(logits.begin(), logits.end());
  }
  return rows;
}

}  // namespace

TEST_CASE("windows do not overlap, and what is left is dropped") {
  const std::vector<int32_t> ids = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  const Windows w = cut_windows(ids, 4, 0, 10);
  CHECK(w.count == 2);
  CHECK(w[1].size() == 4);
  CHECK(w[1][0] == 4);
  CHECK(cut_windows(ids, 4, 1, 10).count == 1);
  CHECK(cut_windows(ids, 4, 5, 10).count == 2);
  CHECK_THROWS_WITH_AS(cut_windows(ids, 11, 0, 10), doctest::Contains("at least 11"), Error);
  CHECK_THROWS_WITH_AS(cut_windows(ids, 1, 0, 10), doctest::Contains("at least 2"), Error);
  CHECK_THROWS_WITH_AS(cut_windows(ids, 4, 0, 9), doctest::Contains("vocabulary"), Error);
}

TEST_CASE("a scheme with one range per tensor gets a window as one step, others small steps") {
  CHECK(model(models().per_tensor).decoder(300, 300).max_rows() == 300);
  CHECK(model(models().f16).decoder(300, 300).max_rows() == 256);
}

TEST_CASE("a range per tensor spans the window, and its last token") {
  const Model m = model(models().per_tensor);
  const auto ids = text_ids(m);
  Decoder one = m.decoder(kWindow, kWindow);
  const Perplexity p = measure_perplexity(one, ids, kWindow, 1, kNoProgress);
  step_with_logits(one, std::span(ids).first(kWindow), 0);
  Statistics scores;
  for (int64_t i = 0; i + 1 < kWindow; ++i) {
    scores.add(negative_log_likelihood(one.logits(i), ids[size_t(i + 1)]));
  }
  CHECK(p.window_nll[0] == scores.mean());

  Decoder parts(File::open(models().per_tensor), make_cpu_backend(1),
                {.context = kWindow, .max_rows = 16});
  const Perplexity cut = measure_perplexity(parts, ids, kWindow, 1, kNoProgress);
  CHECK(cut.window_nll[0] != p.window_nll[0]);
}

TEST_CASE("tokens that are only read are no part of a window's score") {
  const Model m = model(models().w3);
  const auto ids = text_ids(m);
  constexpr int64_t kUnscored = 20;
  Decoder decoder = m.decoder(kWindow, kWindow);
  step_with_logits(decoder, std::span(ids).first(kWindow), 0);
  Statistics scores;
  for (int64_t next = kUnscored; next < kWindow; ++next) {
    scores.add(negative_log_likelihood(decoder.logits(next - 1), ids[size_t(next)]));
  }
  for (const int64_t rows : {kWindow, int64_t(7)}) {
    Decoder steps(File::open(models().w3), make_cpu_backend(1),
                  {.context = kWindow, .max_rows = rows});
    const Perplexity p = measure_perplexity(steps, ids, kWindow, 1, kNoProgress, kUnscored);
    CHECK(p.tokens == kWindow - kUnscored);
    CHECK(p.window_nll[0] == scores.mean());
  }
}

TEST_CASE("steps of any size give the same perplexity where ranges are per token") {
  const Model m = model(models().w3);
  const auto ids = text_ids(m);
  Decoder whole = m.decoder(kWindow, kWindow);
  Decoder parts(File::open(models().w3), make_cpu_backend(1), {.context = kWindow, .max_rows = 7});
  int64_t fed = 0;
  const Perplexity a = measure_perplexity(whole, ids, kWindow, 3, kNoProgress);
  const Perplexity b = measure_perplexity(parts, ids, kWindow, 3, [&](int64_t n) { fed += n; });
  CHECK(fed == 3 * kWindow);
  CHECK(a.window_nll == b.window_nll);
  CHECK(a.tokens == 3 * (kWindow - 1));
  CHECK(a.standard_error > 0);
}

TEST_CASE("a model's divergence from itself is nothing") {
  for (const std::string& path : {models().f16, models().w3}) {
    for (const int64_t rows : {kWindow, int64_t(7)}) {
      const Divergence d = divergence(path, path, rows);
      CHECK(d.mean == 0);
      CHECK(d.percentile_99 == 0);
      CHECK(d.agreement == 1);
      CHECK(d.agreement_standard_error == 0);
      CHECK(d.windows == 3);
      CHECK(d.tokens == 3 * (kWindow - 1));
    }
  }
}

TEST_CASE("divergence from a quantized model is what the definition gives") {
  const Divergence d = divergence(models().f16, models().w3, kWindow);
  const Model p = model(models().f16), q = model(models().w3);
  const auto ids = text_ids(p);
  std::vector<double> kls;
  Statistics mean;
  int64_t same = 0;
  for (int64_t w = 0; w < 3; ++w) {
    const auto window = std::span(ids).subspan(size_t(w * kWindow), size_t(kWindow));
    const auto a = window_logits(p, window), b = window_logits(q, window);
    for (size_t i = 0; i < a.size(); ++i) {
      double kl = 0;
      for (int32_t t = 0; t < int32_t(a[i].size()); ++t) {
        const double log_p = -negative_log_likelihood(a[i], t);
        kl += std::exp(log_p) * (log_p + negative_log_likelihood(b[i], t));
      }
      kls.push_back(kl);
      mean.add(kl);
      same += std::max_element(a[i].begin(), a[i].end()) - a[i].begin() ==
                      std::max_element(b[i].begin(), b[i].end()) - b[i].begin()
                  ? 1
                  : 0;
    }
  }
  CHECK(d.mean > 0);
  CHECK(d.mean == Approx(mean.mean()).epsilon(1e-9));
  CHECK(d.standard_error == Approx(mean.standard_error()).epsilon(1e-9));
  CHECK(d.percentile_99 == Approx(quantile(kls, 0.99)).epsilon(1e-9));
  CHECK(d.agreement == Approx(double(same) / double(kls.size())));
  CHECK(d.agreement < 1);
}

TEST_CASE("vocabularies are compared token by token") {
  const Model a = model(models().f16);
  check_same_vocabulary(a, model(models().w3));
  CHECK_THROWS_WITH_AS(check_same_vocabulary(a, model(models().other)),
                       doctest::Contains("<|im_over|>"), Error);
}
