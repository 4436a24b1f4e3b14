#include "runtime/ranking.h"

#include <algorithm>
#include <cmath>

namespace oq {

void rank_logits(std::span<const float> logits, const RankRequest& request, Ranking& out) {
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
