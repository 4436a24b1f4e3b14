#include "tools/calibrate/methods/block_search.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "tools/calibrate/learn/loss.h"
#include "tools/calibrate/solver/allocation.h"

namespace oq::calibrate {

BlockSearch::BlockSearch(BlockJob& job, const Variant& variant, uint64_t budget)
    : job_(job), variant_(variant), budget_(budget), executed_(variant.weights) {
  for (auto& [name, l] : executed_.linears) {
    l.input_bits = job_.options().scheme.activation_bits;
  }
}

void BlockSearch::start() {
  std::vector<std::string> ways;
  for (const auto& [name, candidates] : variant_.candidates) {
    for (const Candidate& c : candidates) {
      if (std::find(ways.begin(), ways.end(), c.how) == ways.end()) ways.push_back(c.how);
    }
  }
  for (const std::string& how : ways) {
    Choice choice;
    for (const auto& [name, candidates] : variant_.candidates) {
      const auto same = std::find_if(candidates.begin(), candidates.end(),
                                     [&](const Candidate& c) { return c.how == how; });
      choice[name] = same == candidates.end() ? 0 : size_t(same - candidates.begin());
    }
    consider(choice);
  }
}

void BlockSearch::start(const Choice& best, double least) {
  best_ = best;
  least_ = least;
}

Choice BlockSearch::buy() {
  const int64_t first = job_.config().experts > 0 ? 0 : first_judged();
  std::vector<std::vector<Price>> items;
  for (const auto& [name, candidates] : variant_.candidates) set(name, nullptr);
  for (const auto& [name, candidates] : variant_.candidates) {
    std::vector<Price>& item = items.emplace_back();
    for (const Candidate& c : candidates) {
      set(name, &c);
      item.push_back({c.bytes(), measure(first)});
    }
    set(name, nullptr);
  }
  const std::vector<size_t> bought =
      with_place(fmt::format("{}, --target-bits", job_.full_name("*")),
                 [&] { return allocate(items, budget_); });
  Choice choice;
  for (const auto& entry : variant_.candidates) choice[entry.first] = bought[choice.size()];
  return choice;
}

void BlockSearch::improve() {
  if (best_.empty()) return;
  size_t done = 0;
  for (const auto& [name, candidates] : variant_.candidates) {
    job_.progress(double(done++) / double(variant_.candidates.size()), "comparing " + name);
    const Choice now = best_;
    for (size_t i = 0; i < candidates.size(); ++i) {
      if (i == now.at(name)) continue;
      Choice other = now;
      other[name] = i;
      consider(other);
    }
  }
}

bool BlockSearch::affords(const Choice& choice) const {
  uint64_t sum = 0;
  for (const auto& [name, index] : choice) sum += variant_.candidates.at(name)[index].bytes();
  return sum <= budget_;
}

const BlockWeights& BlockSearch::executed(const Choice& choice) {
  for (const auto& [name, index] : choice) set(name, &variant_.candidates.at(name)[index]);
  return executed_;
}

double BlockSearch::error(const Choice& choice) {
  executed(choice);
  return measure(first_judged());
}

void BlockSearch::consider(const Choice& choice) {
  if (!affords(choice)) return;
  const double e = error(choice);
  if (!(e < least_)) return;
  least_ = e;
  best_ = choice;
}

/// nullptr: in full precision.
void BlockSearch::set(const std::string& name, const Candidate* c) {
  const Candidate*& now = set_[name];
  if (now == c && c != nullptr) return;
  now = c;
  LinearWeights& l = executed_.linears.at(name);
  l.weight = c != nullptr ? c->linear.dequantize() : variant_.weights.linears.at(name).weight;
  l.weak = c != nullptr ? c->linear.weak : std::vector<uint32_t>();
}

int64_t BlockSearch::first_judged() const {
  return job_.windows() < job_.all_windows() ? job_.windows() : 0;
}

/// On the windows from `first` on.
double BlockSearch::measure(int64_t first) {
  double sum = 0;
  const int64_t cols = job_.config().hidden, end = job_.all_windows();
  for (int64_t w = first; w < end; ++w) {
    x_.assign(job_.input(w).begin(), job_.input(w).end());
    unused_.assign(x_.size(), 0);
    job_.runner().forward(executed_, job_.options().scheme, x_.data(), job_.tokens(), {},
                          job_.sight(w));
    sum += relative_error(x_, job_.target(w), cols, 1.0 / double(end - first), unused_);
  }
  return std::isfinite(sum) ? sum : std::numeric_limits<double>::infinity();
}

int64_t held_out_windows(int64_t windows) { return windows / 8; }

double judged_share(int64_t windows) {
  const int64_t held_out = held_out_windows(windows);
  return held_out > 0 ? double(held_out) / double(windows) : 1;
}

}  // namespace oq::calibrate
