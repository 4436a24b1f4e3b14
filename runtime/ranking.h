#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace oq {

constexpr int64_t kMostRanked = 128;

/// What a sampler asks of one row's logits where it does not need all of them.
struct RankRequest {
  int64_t vocab = 0;                   ///< ids below it take part: 1..logits of the row
  int64_t count = 1;                   ///< tokens wanted: 1..kMostRanked
  double temperature = 0;              ///< above 0: `total` is wanted
  std::span<const int32_t> also = {};  ///< ids below `vocab` whose logits are wanted whatever their
                                       ///< rank: at most kMostRanked

  /// Throws oq::Error, naming the value, unless it is a request of a row with so many logits.
  void check(int64_t logits) const;
};

/// The answer.
struct Ranking {
  struct Token {
    int32_t id;
    float logit;
    friend bool operator==(const Token&, const Token&) = default;
  };
  std::vector<Token> tokens;  ///< min(count, vocab), likeliest first; equal ones by id, ascending
  std::vector<float> also;
  double total = 0;    ///< sum of exp((logit - largest) / temperature) over all, to 1e-10 of it
  bool finite = true;  ///< all logits are; where not, nothing else here says anything
};

/// The answer from the logits themselves. Throws where request.check(logits.size()) does.
void rank_logits(std::span<const float> logits, const RankRequest& request, Ranking& out);

}  // namespace oq
