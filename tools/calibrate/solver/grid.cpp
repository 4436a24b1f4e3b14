#include "tools/calibrate/solver/grid.h"

#include <bit>
#include <limits>
#include <vector>

#include <fmt/format.h>

#include "format/error.h"
#include "format/half.h"

namespace oq::calibrate {
namespace {

/// x^2.4 for x >= 0 as a^2 (a^-1/5)^4 with a = x^2. The root starts from the exponent bits (within
/// 5 %) and takes three Newton steps, each of which squares the error: some 1e-7 remain. Plain
/// arithmetic, so that a loop of it is vectorized.
float power_2_4(float x) {
  const float a = x * x;
  constexpr float kStart = 1.2f * (127.0f - 0.0450466f) * 0x1p23f;
  float root = std::bit_cast<float>(int32_t(kStart - 0.2f * float(std::bit_cast<int32_t>(a))));
  for (int i = 0; i < 3; ++i) {
    const float square = root * root;
    root += 0.2f * root * (1.0f - a * square * square * root);  // in this order 0 gives 0, not NaN
  }
  const float b = a * (root * root);
  return b * b;
}

float round_even(float x) {  // |x| < 2^22
  constexpr float kShift = 0x1.8p23f;
  return (x + kShift) - kShift;
}

/// A scale as it is stored, never 0.
float stored_scale(double scale, const GridOptions& options) {
  if (options.fp32_scales) return std::max(float(scale), 1e-8f);
  const f16 half = to_f16(float(scale));
  if (!std::isfinite(to_float(half))) {
    throw Error({.what = "weights are too large for f16 scales",
                 .expected = "a scale up to 65504",
                 .found = fmt::format("{}", scale)});
  }
  return half.bits == 0 ? to_float(f16{1}) : to_float(half);
}

struct Range {
  float low = 0, high = 0;  ///< 0 included
};

Range range_of(std::span<const float> weights) {
  Range r;
  bool finite = true;
  for (float w : weights) {
    finite &= std::isfinite(w);
    r.low = std::min(r.low, w);
    r.high = std::max(r.high, w);
  }
  if (!finite) throw Error({.what = "a weight is not finite"});
  if (r.low == 0 && r.high == 0) r = {-1, 1};
  return r;
}

bool is_symmetric(const Packing& p) { return p.zero_mode == ZeroMode::constant; }

/// What a grid over the whole range spans, in steps of one code.
double full_scale(const Range& r, const Packing& p) {
  if (is_symmetric(p)) return double(std::max(-r.low, r.high)) / double(p.zero);
  return (double(r.high) - double(r.low)) / p.max_code();
}

Grid minmax_grid(const Range& r, const GridOptions& options) {
  const Packing& p = options.packing;
  const float scale = stored_scale(full_scale(r, p), options);
  if (is_symmetric(p)) return {scale, p.zero};
  const float zero = std::clamp(-r.low / scale, 0.0f, float(p.max_code()));
  return {scale, int(round_even(zero))};
}

/// OWQ's search. Sorted weights make it cheap: what a grid does not clip is one stretch, whose
/// errors do not depend on the zero point, so that a prefix sum serves all zero points of a scale;
/// what it clips lies at the ends, and most grids are out of the running after a few of those.
class Search {
 public:
  Search(std::span<const float> weights, const GridOptions& options,
         std::span<const float> importance)
      : options_(options), weights_(weights.begin(), weights.end()) {
    if (importance.empty()) {
      std::sort(weights_.begin(), weights_.end());
    } else {
      sort_with(importance);
    }
    steps_.resize(weights_.size());
    codes_.resize(weights_.size());
    errors_.resize(weights_.size());
    sums_.resize(weights_.size() + 1);
  }

  /// Scales from the largest down: the first ones are good and rule out most of the others. That
  /// the first of equal grids wins makes "not worse" the test from scale to scale.
  Grid run(const Range& range, int steps) {
    const Packing& p = options_.packing;
    const double full = full_scale(range, p);
    const int first = is_symmetric(p) ? p.zero : 0;
    const int last = is_symmetric(p) ? p.zero : p.max_code();
    for (int i = steps; i >= 1; --i) {
      set_scale(stored_scale(full * i / steps, options_));
      bool replaced = false;
      for (int zero = first; zero <= last; ++zero) {
        const double e = error(zero);
        if (e < best_error_ || (e == best_error_ && !replaced)) {
          replaced = true;
          best_error_ = e;
          best_ = {scale_, zero};
        }
      }
    }
    return best_;
  }

 private:
  void sort_with(std::span<const float> importance) {
    std::vector<std::pair<float, float>> pairs(weights_.size());
    for (size_t k = 0; k < pairs.size(); ++k) pairs[k] = {weights_[k], importance[k]};
    std::sort(pairs.begin(), pairs.end());
    importance_.resize(pairs.size());
    for (size_t k = 0; k < pairs.size(); ++k) {
      weights_[k] = pairs[k].first;
      importance_[k] = pairs[k].second;
    }
  }

  /// What an error of x steps at sorted weight k costs, in units.
  float cost(float x, size_t k) const {
    return importance_.empty() ? power_2_4(x) : importance_[k] * x * x;
  }

  void set_scale(float scale) {
    scale_ = scale;
    unit_ = importance_.empty() ? std::pow(double(scale), 2.4) : double(scale) * scale;
    have_sums_ = false;
    for (size_t k = 0; k < weights_.size(); ++k) {
      steps_[k] = weights_[k] / scale;
      codes_[k] = round_even(steps_[k]);
    }
  }

  void sum_errors() {
    const size_t n = weights_.size();
    if (importance_.empty()) {
      for (size_t k = 0; k < n; ++k) errors_[k] = power_2_4(std::fabs(steps_[k] - codes_[k]));
    } else {
      for (size_t k = 0; k < n; ++k) {
        const float x = steps_[k] - codes_[k];
        errors_[k] = importance_[k] * x * x;
      }
    }
    for (size_t k = 0; k < weights_.size(); ++k) sums_[k + 1] = sums_[k] + double(errors_[k]);
    have_sums_ = true;
  }

  /// Sum |w - Q(w)|^2.4, or importance * (w - Q(w))^2, at this scale and zero point; infinity once
  /// it is worse than the best.
  double error(int zero) {
    const auto low = float(-zero), high = float(options_.packing.max_code() - zero);
    const double limit = best_error_ / unit_;
    double clipped = 0;
    size_t begin = 0, end = weights_.size();
    for (; begin < end && codes_[begin] < low && clipped <= limit; ++begin) {
      clipped += double(cost(low - steps_[begin], begin));
    }
    for (; end > begin && codes_[end - 1] > high && clipped <= limit; --end) {
      clipped += double(cost(steps_[end - 1] - high, end - 1));
    }
    if (clipped > limit) return std::numeric_limits<double>::infinity();
    if (!have_sums_) sum_errors();
    return (clipped + (sums_[end] - sums_[begin])) * unit_;
  }

  const GridOptions& options_;
  std::vector<float> weights_;     ///< ascending
  std::vector<float> importance_;  ///< of weights_, or empty
  std::vector<float> steps_;       ///< weights / scale
  std::vector<float> codes_;       ///< rounded
  std::vector<float> errors_;      ///< cost(|steps - codes|)
  std::vector<double> sums_;       ///< of errors before k
  bool have_sums_ = false;
  float scale_ = 1;
  double unit_ = 1;  ///< scale^2.4, or scale^2
  double best_error_ = std::numeric_limits<double>::max();
  Grid best_;
};

}  // namespace

Grid fit_grid(std::span<const float> weights, const GridOptions& options, int steps,
              std::span<const float> importance) {
  const Packing& p = options.packing;
  if (is_symmetric(p) && p.zero <= 0) {
    throw Error(
        {.what = "a symmetric grid needs a positive zero point", .found = std::to_string(p.zero)});
  }
  const Range range = range_of(weights);
  if (options.tuning == Tuning::minmax || weights.empty()) return minmax_grid(range, options);
  return Search(weights, options, importance).run(range, std::max(1, steps));
}

}  // namespace oq::calibrate
