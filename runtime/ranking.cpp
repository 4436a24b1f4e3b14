#include "runtime/ranking.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "format/error.h"

namespace oq {

void RankRequest::check(int64_t logits) const {
  const auto require = [](const char* what, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return;
    throw Error({.what = what,
                 .where = "ranking of logits",
                 .expected = std::to_string(low) + " to " + std::to_string(high),
                 .found = std::to_string(value)});
  };
  require("bad number of ids that take part", vocab, 1, logits);
  require("bad number of likeliest tokens", count, 1, kMostRanked);
  require("too many tokens are asked for by id", int64_t(also.size()), 0, kMostRanked);
  for (const int32_t id : also) require("a token that does not take part", id, 0, vocab - 1);
}

void rank_logits(std::span<const float> logits, const RankRequest& request, Ranking& out) {
  request.check(int64_t(logits.size()));
  logits = logits.first(size_t(request.vocab));
  out = {};
  out.finite = std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); });
  if (!out.finite) return;
  for (const int32_t id : request.also) out.also.push_back(logits[size_t(id)]);
  const auto likelier = [](const Ranking::Token& a, const Ranking::Token& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  // A heap of the likeliest so far, the least likely of them on top.
  const auto count = size_t(std::min(request.count, request.vocab));
  for (size_t i = 0; i < logits.size(); ++i) {
    const Ranking::Token t{int32_t(i), logits[i]};
    if (out.tokens.size() == count) {
      if (!likelier(t, out.tokens.front())) continue;
      std::pop_heap(out.tokens.begin(), out.tokens.end(), likelier);
      out.tokens.pop_back();
    }
    out.tokens.push_back(t);
    std::push_heap(out.tokens.begin(), out.tokens.end(), likelier);
  }
  std::sort_heap(out.tokens.begin(), out.tokens.end(), likelier);
  if (request.temperature <= 0) return;
  const double largest = out.tokens.front().logit;
  for (const float x : logits) out.total += std::exp((double(x) - largest) / request.temperature);
}

}  // namespace oq
