#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "runtime/ranking.h"

namespace oq {

/// The xoshiro256** generator (Blackman and Vigna 2021, arXiv 1805.01407), seeded by splitmix64.
class Random {
 public:
  explicit Random(uint64_t seed);
  uint64_t next();
  /// Uniform in [0, 1), a multiple of 2^-53.
  double uniform() { return double(next() >> 11) * 0x1p-53; }

 private:
  std::array<uint64_t, 4> state_;
};

/// The defaults change nothing about the model's own distribution.
struct SamplerParams {
  double temperature = 1;      ///< 0 = greedy: the largest logit
  int64_t top_k = 0;           ///< keep the k most likely tokens; 0 = all
  double top_p = 1;            ///< keep the fewest likeliest tokens that come to this probability
  double min_p = 0;            ///< drop tokens less likely than this share of the likeliest one
  double repeat_penalty = 1;   ///< > 1 makes tokens of the window less likely
  int64_t repeat_window = 64;  ///< how many of the last tokens the penalty looks at
  uint64_t seed = 0;

  /// Throws oq::Error naming the value that makes no sense.
  void check() const;
};

/// Chooses the next token from logits.
///
/// In this order: the repetition penalty of CTRL (Keskar et al. 2019, arXiv 1909.05858: a positive
/// logit is divided by it, a negative one multiplied, once for each token in the window);
/// temperature; top-k; top-p of what is left (Holtzman et al. 2020, arXiv 1904.09751); min-p
/// (Nguyen et al. 2024, arXiv 2407.01082). Equal logits rank by id, the lowest first. The same
/// seed, logits and history give the same tokens on every machine: all sums are in double, in a
/// fixed order, with an exponential of our own.
///
/// Not thread-safe. Keeps scratch memory of 16 bytes per token of the vocabulary.
class Sampler {
 public:
  explicit Sampler(const SamplerParams& params);

  /// Throws oq::Error when `logits` is empty or holds a NaN or an infinity.
  int32_t sample(std::span<const float> logits);

  /// What would do in place of `vocab` logits: greedy choice and top-k need the likeliest and the
  /// penalty's window, top-p the likeliest and the sum of all weights. Nothing where more than
  /// kMostRanked would be needed, or every token can be drawn. Valid until the next call.
  std::optional<RankRequest> request(int64_t vocab);

  /// The token that `sample` would give for those logits. Nothing, and then nothing has changed,
  /// where the answer to `request` does not decide it: the nucleus goes on beyond it, or ends so
  /// close to top_p that the sum's rounding matters; or a logit is not finite.
  std::optional<int32_t> sample_ranked(const Ranking& ranking);

  /// Tells the sampler what the sequence holds: every token of prompt and answer, in order.
  void accept(int32_t id) { history_.push_back(id); }

  /// The sequence was cut back to its first `length` tokens, and so is the history.
  void truncate(int64_t length);

  /// Forgets the history, and starts the seed's sequence again.
  void reset();

  const SamplerParams& params() const { return params_; }

 private:
  struct Candidate {
    int32_t id;
    float logit;
    double weight;  ///< exp((logit - largest) / temperature)
  };

  std::vector<int32_t> window(size_t vocab) const;
  float penalized(float logit) const;
  void penalize();
  int32_t greedy() const;
  bool keep_top_p_of(double total);
  void keep_top_k();
  void weigh();
  void keep_top_p();
  void keep_min_p();
  int32_t draw();
  /// Sorts the first n candidates into place, likeliest first.
  void rank(size_t n);

  SamplerParams params_;
  Random random_;
  std::vector<int32_t> history_;
  std::vector<Candidate> candidates_;
  std::vector<int32_t> window_;  ///< of the last request
};

}  // namespace oq
