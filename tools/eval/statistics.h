#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace oq {

/// Mean and standard error of the mean of everything added: sd / sqrt(n), where sd is the sample's
/// (n - 1); NaN where fewer than two values tell nothing of it. Welford's update, so that long
/// texts lose no digits.
class Statistics {
 public:
  void add(double x) {
    ++n_;
    const double delta = x - mean_;
    mean_ += delta / double(n_);
    squares_ += delta * (x - mean_);
  }
  int64_t count() const { return n_; }
  double mean() const { return mean_; }
  double standard_error() const {
    return n_ < 2 ? NAN : std::sqrt(squares_ / double(n_ - 1) / double(n_));
  }

 private:
  int64_t n_ = 0;
  double mean_ = 0, squares_ = 0;
};

/// The value below which a share `q` (0..1) of the values lies, linear between neighbours: numpy's
/// default. PRECOND: there are values.
inline double quantile(std::vector<double> values, double q) {
  const double at = q * double(values.size() - 1);
  const auto low = values.begin() + int64_t(at);
  std::nth_element(values.begin(), low, values.end());
  if (low + 1 == values.end()) return *low;
  const double above = *std::min_element(low + 1, values.end());
  return *low + (at - std::floor(at)) * (above - *low);
}

}  // namespace oq
