#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include <doctest/doctest.h>

/// What the tests of the kernels share: random numbers, and when two results are the same.
namespace oq::test {

using Rng = std::mt19937;

inline std::vector<float> random_floats(Rng& rng, size_t n, float mean = 0.1f, float scale = 1.0f) {
  std::normal_distribution<float> normal(mean, scale);
  std::vector<float> v(n);
  for (float& x : v) x = normal(rng);
  return v;
}

/// |a - b| <= atol + rtol |b|, no NaN, and the normalized mean square error: the three ways in
/// which a kernel can be wrong. Prints the worst place.
struct Difference {
  double worst = 0, nmse = 0;
  size_t at = 0;
  bool close = true;
};

inline Difference compare(const std::vector<float>& a, const std::vector<float>& b, double atol,
                          double rtol) {
  REQUIRE(a.size() == b.size());
  Difference d;
  double error = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double diff = std::fabs(double(a[i]) - double(b[i]));
    if (!(diff <= atol + rtol * std::fabs(double(b[i])))) d.close = false;
    if (!(diff <= d.worst)) d.worst = diff, d.at = i;
    error += diff * diff;
    norm += double(b[i]) * double(b[i]);
  }
  d.nmse = error / std::max(norm, 1e-30);
  return d;
}

#define CHECK_CLOSE(a, b, atol, rtol, max_nmse)                      \
  do {                                                               \
    const Difference difference = compare((a), (b), (atol), (rtol)); \
    CAPTURE(difference.worst);                                       \
    CAPTURE(difference.at);                                          \
    CAPTURE(difference.nmse);                                        \
    CHECK(difference.close);                                         \
    CHECK(difference.nmse <= (max_nmse));                            \
  } while (false)

}  // namespace oq::test
