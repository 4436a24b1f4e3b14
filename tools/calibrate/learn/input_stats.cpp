#include "tools/calibrate/learn/input_stats.h"

#include <algorithm>
#include <numeric>

namespace oq::calibrate {
namespace {

constexpr double kSilentShare = 0.01;  ///< of the mean of squares, that every channel has

void add_middle(const float* x, int64_t rows, int64_t cols, std::vector<float>& middle) {
  std::vector<float> now(static_cast<size_t>(cols));
  for (int64_t k = 0; k < cols; ++k) {
    float low = x[k], high = x[k];
    for (int64_t t = 1; t < rows; ++t) {
      low = std::min(low, x[t * cols + k]);
      high = std::max(high, x[t * cols + k]);
    }
    now[size_t(k)] = (low + high) / 2;
  }
  if (middle.empty()) middle = now;
  for (size_t k = 0; k < now.size(); ++k) middle[k] = 0.99f * middle[k] + 0.01f * now[k];
}

void add_moments(const float* x, int64_t rows, int64_t cols, std::vector<float>& sums,
                 std::vector<float>& squares) {
  sums.resize(size_t(cols));
  squares.resize(size_t(cols));
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t k = 0; k < cols; ++k) {
      const float v = x[t * cols + k];
      sums[size_t(k)] += v;
      squares[size_t(k)] += v * v;
    }
  }
}

}  // namespace

void InputStats::observe(BlockJob& job) {
  for (const Sight of : {Sight::alone, Sight::causal}) {
    job.observe(
        [&](const std::vector<std::string>& group, const float* x, int64_t rows, int64_t cols) {
          Channels& s = of_[group.front()];
          if (s.largest.empty()) s.largest.resize(size_t(cols));
          update_channel_max({x, size_t(rows * cols)}, s.largest);
          // First tokens' range is hundreds of times that of others: no place for shifts to start.
          if (of == Sight::causal) add_middle(x, rows, cols, s.middle);
          add_moments(x, rows, cols, s.sums, s.squares);
          s.tokens += rows;
          for (const std::string& name : group) of_[name] = s;
        },
        of);
  }
}

void InputStats::take_ranges(const BlockWeights& block, const BlockParameters& ranges) {
  for (const auto& [name, l] : block.linears) {
    Channels& s = of_[name];
    const std::span<const float> largest = ranges.at(name + ".largest").values();
    s.largest.assign(largest.begin(), largest.end());
    s.middle.assign(size_t(l.in()), 0);
    const auto middle = ranges.find(name + ".middle");
    if (middle == ranges.end()) continue;
    std::copy_n(middle->second.values().begin(), s.middle.size(), s.middle.begin());
  }
}

InputMaxima InputStats::largest() const {
  InputMaxima maxima;
  for (const auto& [name, s] : of_) maxima[name] = s.largest;
  return maxima;
}

const std::vector<float>& InputStats::middle(const std::string& linear) const {
  return of_.at(linear).middle;
}

std::vector<float> InputStats::importance(const std::string& linear,
                                          const Transformation* transformation) const {
  const auto seen = of_.find(linear);
  if (seen == of_.end()) return {};
  const Channels& s = seen->second;
  std::vector<float> h = s.squares;
  if (transformation != nullptr) {
    const std::vector<float>& factors = transformation->column_factors(linear);
    const std::vector<float>& shifts = transformation->column_shifts(linear);
    for (size_t k = 0; k < h.size(); ++k) {
      const float d = shifts[k], moved = d * (float(s.tokens) * d - 2 * s.sums[k]);
      h[k] = std::max(0.0f, h[k] + moved) / (factors[k] * factors[k]);
    }
  }
  const double mean = std::accumulate(h.begin(), h.end(), 0.0) / double(h.size());
  if (mean == 0) return {};
  for (float& v : h) v += float(kSilentShare * mean);
  return h;
}

}  // namespace oq::calibrate
