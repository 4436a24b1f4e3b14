#include "runtime/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <string>

#include "format/error.h"

// Built with -ffp-contract=off: what a seed gives must not depend on fused multiply-adds.

namespace oq {
namespace {

/// 1 / k!
constexpr std::array<double, 15> kInverseFactorials = [] {
  std::array<double, 15> c{};
  double factorial = 1;
  for (size_t k = 0; k < c.size(); ++k) {
    if (k > 0) factorial *= double(k);
    c[k] = 1 / factorial;
  }
  return c;
}();

/// exp(x) for x <= 0 from IEEE operations alone, so that it is the same everywhere, unlike the
/// C library's; relative error below 1e-15. x = n ln 2 + r, then Taylor's series of exp(r).
double portable_exp(double x) {
  if (x < -700) return 0;
  constexpr double kLn2High = 0x1.62e42fee00000p-1, kLn2Low = 0x1.a39ef35793c76p-33;
  const int64_t n = int64_t(x * 0x1.71547652b82fep0 - 0.5);  // truncation rounds, as x <= 0
  const double r = (x - double(n) * kLn2High) - double(n) * kLn2Low;  // |r| <= ln 2 / 2
  double sum = 0;
  for (size_t k = kInverseFactorials.size(); k-- > 0;) sum = sum * r + kInverseFactorials[k];
  return sum * std::bit_cast<double>(uint64_t(1023 + n) << 52);
}

void require(bool holds, const char* name, const char* expected, double found) {
  if (holds) return;
  throw Error({.what = std::string(name) + " makes no sense",
               .expected = expected,
               .found = std::to_string(found)});
}

}  // namespace

Random::Random(uint64_t seed) {
  for (uint64_t& s : state_) {  // splitmix64
    seed += 0x9E3779B97F4A7C15u;
    uint64_t z = seed;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    s = z ^ (z >> 31);
  }
}

uint64_t Random::next() {
  const uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
  const uint64_t t = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= t;
  state_[3] = std::rotl(state_[3], 45);
  return result;
}

void SamplerParams::check() const {
  require(temperature >= 0 && temperature <= 1e6, "temperature", "0 to 1e6", temperature);
  require(top_k >= 0, "top-k", "0 or more", double(top_k));
  require(top_p > 0 && top_p <= 1, "top-p", "above 0, up to 1", top_p);
  require(min_p >= 0 && min_p <= 1, "min-p", "0 to 1", min_p);
  require(repeat_penalty > 0 && repeat_penalty <= 1e6, "repeat-penalty", "above 0, up to 1e6",
          repeat_penalty);
  require(repeat_window >= 0, "repeat-window", "0 or more", double(repeat_window));
}

Sampler::Sampler(const SamplerParams& params) : params_(params), random_(params.seed) {
  params_.check();
}

void Sampler::truncate(int64_t length) {
  history_.resize(std::min(history_.size(), size_t(std::max<int64_t>(length, 0))));
}

void Sampler::reset() {
  history_.clear();
  random_ = Random(params_.seed);
}

int32_t Sampler::sample(std::span<const float> logits) {
  if (logits.empty()) throw Error({.what = "no logits to sample from"});
  candidates_.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!std::isfinite(logits[i])) {
      throw Error({.what = "logit " + std::to_string(i) + " is no number",
                   .found = std::to_string(logits[i]),
                   .hint = "the model's weights are damaged: try oq-info --verify"});
    }
    candidates_[i] = {int32_t(i), logits[i], 0};
  }
  penalize();
  if (params_.temperature == 0) return greedy();
  keep_top_k();
  weigh();
  keep_top_p();
  keep_min_p();
  return draw();
}

std::optional<RankRequest> Sampler::request(int64_t vocab) {
  window_ = window(size_t(vocab));
  RankRequest r{.vocab = vocab, .count = int64_t(window_.size()), .also = window_};
  if (params_.temperature == 0) {
    r.count += 1;
  } else if (params_.top_k > 0) {
    r.count += std::min(params_.top_k, vocab);
  } else if (params_.top_p < 1 && window_.empty()) {
    r.count = kMostRanked;
    r.temperature = params_.temperature;
  } else {
    return std::nullopt;
  }
  if (r.count > kMostRanked || r.count >= vocab) return std::nullopt;
  return r;
}

std::optional<int32_t> Sampler::sample_ranked(const Ranking& ranking) {
  if (!ranking.finite) return std::nullopt;
  candidates_.clear();
  // What the penalty moves is known whatever its rank; what it leaves keeps its order.
  for (const Ranking::Token& t : ranking.tokens) {
    if (std::binary_search(window_.begin(), window_.end(), t.id)) continue;
    candidates_.push_back({t.id, t.logit, 0});
  }
  for (size_t i = 0; i < window_.size(); ++i) {
    candidates_.push_back({window_[i], penalized(ranking.also[i]), 0});
  }
  if (params_.temperature == 0) {
    rank(1);
    return candidates_.front().id;
  }
  keep_top_k();
  weigh();
  if (params_.top_k > 0) {
    keep_top_p();
  } else if (!keep_top_p_of(ranking.total)) {
    return std::nullopt;
  }
  keep_min_p();
  return draw();
}

/// The tokens that the penalty looks at, ascending.
std::vector<int32_t> Sampler::window(size_t vocab) const {
  if (params_.repeat_penalty == 1) return {};
  const size_t n = std::min(history_.size(), size_t(params_.repeat_window));
  std::vector<int32_t> recent(history_.end() - std::ptrdiff_t(n), history_.end());
  std::sort(recent.begin(), recent.end());
  recent.erase(std::unique(recent.begin(), recent.end()), recent.end());
  std::erase_if(recent, [&](int32_t id) { return id < 0 || size_t(id) >= vocab; });
  return recent;
}

float Sampler::penalized(float logit) const {
  const float penalty = float(params_.repeat_penalty);
  return logit > 0 ? logit / penalty : std::max(logit * penalty, -3e38f);
}

void Sampler::penalize() {
  for (const int32_t id : window(candidates_.size())) {
    float& logit = candidates_[size_t(id)].logit;
    logit = penalized(logit);
  }
}

int32_t Sampler::greedy() const {
  const Candidate* best = &candidates_[0];
  for (const Candidate& c : candidates_) {
    if (c.logit > best->logit) best = &c;
  }
  return best->id;
}

void Sampler::rank(size_t n) {
  const auto likelier = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  const auto middle = candidates_.begin() + std::ptrdiff_t(n);
  if (n < candidates_.size()) {
    std::nth_element(candidates_.begin(), middle, candidates_.end(), likelier);
  }
  std::sort(candidates_.begin(), middle, likelier);
}

void Sampler::keep_top_k() {
  const size_t k = size_t(params_.top_k);
  if (k == 0 || k >= candidates_.size()) return;
  rank(k);
  candidates_.resize(k);
}

void Sampler::weigh() {
  float largest = candidates_[0].logit;
  for (const Candidate& c : candidates_) largest = std::max(largest, c.logit);
  for (Candidate& c : candidates_) {
    c.weight = portable_exp((double(c.logit) - double(largest)) / params_.temperature);
  }
}

void Sampler::keep_top_p() {
  if (params_.top_p >= 1) return;
  double total = 0;
  for (const Candidate& c : candidates_) total += c.weight;
  // Most distributions are told by their head: rank four times as many until they suffice.
  for (size_t n = 64;; n *= 4) {
    n = std::min(n, candidates_.size());
    rank(n);
    double sum = 0;
    for (size_t i = 0; i < n; ++i) {
      sum += candidates_[i].weight;
      if (sum >= params_.top_p * total) return candidates_.resize(i + 1);
    }
    if (n == candidates_.size()) return;
  }
}

/// The same, of candidates in order that are not all; their weights and the others' come to about
/// `total`. False where that does not tell.
bool Sampler::keep_top_p_of(double total) {
  const double target = params_.top_p * total, doubt = 1e-9 * total;
  double sum = 0;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    sum += candidates_[i].weight;
    if (std::fabs(sum - target) <= doubt) return false;
    if (sum < target) continue;
    candidates_.resize(i + 1);
    return true;
  }
  return false;
}

void Sampler::keep_min_p() {
  if (params_.min_p <= 0) return;
  const double least = params_.min_p;  // the likeliest weight is 1
  std::erase_if(candidates_, [&](const Candidate& c) { return c.weight < least; });
}

int32_t Sampler::draw() {
  double total = 0;
  for (const Candidate& c : candidates_) total += c.weight;
  const double target = random_.uniform() * total;
  double sum = 0;
  for (const Candidate& c : candidates_) {
    sum += c.weight;
    if (target < sum) return c.id;
  }
  return candidates_.back().id;  // rounding left the target at the very end
}

}  // namespace oq
