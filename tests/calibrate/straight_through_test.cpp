/// Straight-through gradients of weights and activations against finite differences of what they
/// are the gradients of: the quantizer with its rounding held still. A value in range keeps its
/// rounding's residual r, which makes Q(x) = x + s r; a clipped one keeps its code, or follows its
/// end of the range; s follows the extremes.

#include <algorithm>
#include <cmath>
#include <random>

#include <doctest/doctest.h>

#include "kernels/activation_grid.h"
#include "tests/calibrate/problem.h"
#include "tools/calibrate/activation_quantizer.h"
#include "tools/calibrate/learn/weight_quantizer.h"

using namespace oq;
using namespace oq::calibrate;
using test::normals;

namespace {

struct Ends {
  double low, high;
};
Ends ends_of(std::span<const double> x) {
  const auto [low, high] = std::minmax_element(x.begin(), x.end());
  return {*low, *high};
}

/// One range's values where the surrogate was fitted, in double from what the quantizer itself
/// has: s and z.
struct Surrogate {
  double scale, zero, top;
  std::vector<double> residual;  ///< R(x / s) - x / s
  std::vector<int> side;         ///< -1 and 1: clipped at the low and at the high end

  Surrogate(std::span<const float> x, float s, float z, int max_code)
      : scale(double(s)), zero(double(z)), top(max_code) {
    for (const float v : x) {
      const float u = v / s;
      const double code = std::nearbyint(double(u)) + zero;
      residual.push_back(std::nearbyint(double(u)) - double(u));
      side.push_back(code < 0 ? -1 : code > top ? 1 : 0);
    }
  }

  /// sum weigh Q(x), with s `moved` from where it was. `apart`: a clipped value is its end of the
  /// range, otherwise its code.
  double value(std::span<const double> x, double moved, std::span<const double> weigh,
               const Ends* apart) const {
    const double s = scale + moved;
    double sum = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      double q = x[i] + s * residual[i];
      if (side[i] != 0) {
        q = s * ((side[i] > 0 ? top : 0) - zero);
        if (apart != nullptr) q = side[i] > 0 ? apart->high : apart->low;
      }
      sum += weigh[i] * q;
    }
    return sum;
  }
  int64_t clipped() const {
    return std::count_if(side.begin(), side.end(), [](int s) { return s; });
  }
};

/// d sum / d x by central differences, x one range. The extremes' kinks: of two that are equal each
/// has half the slope, which is what a central difference sees.
template <class F>
void check_slopes(std::vector<double> x, std::span<const float> gradient, const F& value) {
  for (size_t i = 0; i < x.size(); ++i) {
    CAPTURE(i);
    const double before = x[i];
    x[i] = before + 1e-6;
    const double up = value(x);
    x[i] = before - 1e-6;
    const double down = value(x);
    x[i] = before;
    CHECK(double(gradient[i]) == doctest::Approx((up - down) / 2e-6).epsilon(1e-4).scale(1));
  }
}

std::vector<double> doubles(std::span<const float> x) { return {x.begin(), x.end()}; }

/// Two equal largest and two equal least values.
void make_ties(std::span<float> x) {
  const auto [low, high] = std::minmax_element(x.begin(), x.end());
  *low = x[5] = *low - 1;
  *high = x[3] = *high + 1;
}

struct ActivationCase {
  int bits;
  bool per_tensor, ties;
  float mean, zero_limit;  ///< a zero point that is held back leaves values outside the codes
};

/// Returns how many values were clipped.
int64_t check_activations(const ActivationCase& c) {
  constexpr size_t kRows = 3, kCols = 24;
  ThreadPool pool(2);
  std::vector<float> x = normals(kRows * kCols, uint32_t(c.bits), c.mean);
  std::vector<float> d = normals(x.size(), 9);
  const size_t n = c.per_tensor ? x.size() : kCols;  // of one range
  for (size_t at = 0; c.ties && at < x.size(); at += n) make_ties(std::span(x).subspan(at, n));
  const std::vector<double> weigh = doubles(d);
  const ActivationQuantizer q{
      .bits = c.bits, .per_tensor = c.per_tensor, .zero_limit = c.zero_limit};
  q.backward(pool, x.data(), kRows, kCols, kCols, d.data());
  int64_t clipped = 0;
  for (size_t at = 0; at < x.size(); at += n) {
    const auto row = std::span<const float>(x).subspan(at, n);
    const auto [low, high] = std::minmax_element(row.begin(), row.end());
    const ActivationGrid grid = ActivationGrid::of(*low, *high, c.bits);
    const float limit = c.zero_limit > 0 ? c.zero_limit : INFINITY;
    const Surrogate still(row, grid.scale, std::clamp(grid.zero, -limit, limit), (1 << c.bits) - 1);
    const double span = double(*high) - double(*low);
    check_slopes(doubles(row), std::span(d).subspan(at, n), [&](std::span<const double> v) {
      const Ends ends = ends_of(v);
      return still.value(v, (ends.high - ends.low - span) / still.top,
                         std::span(weigh).subspan(at, n), nullptr);
    });
    clipped += still.clipped();
  }
  return clipped;
}

}  // namespace

TEST_CASE("gradients through quantized activations are what finite differences say") {
  for (const int bits : {3, 4, 8}) {
    for (const bool per_tensor : {false, true}) {
      for (const bool ties : {false, true}) {
        CAPTURE(bits);
        CAPTURE(per_tensor);
        CAPTURE(ties);
        // A rounded zero point alone clips nothing: it moves every code by the same integer.
        CHECK(check_activations({bits, per_tensor, ties, 0, 0}) == 0);
        const int64_t clipped = check_activations({bits, per_tensor, ties, 9, 1});
        CHECK(clipped > 0);
      }
    }
  }
}

namespace {

struct WeightCase {
  Packing packing;
  WeightQuantizer::Bounds bounds;
  bool stored_scales, ties;
  float upper, lower;  ///< logits

  bool symmetric() const { return packing.zero_mode == ZeroMode::constant; }
};

/// s of clipped ends, not rounded.
double scale_of(const WeightCase& c, const Ends& ends) {
  if (!c.symmetric()) return (ends.high - ends.low) / c.packing.max_code();
  return std::max(std::fabs(ends.high), std::fabs(ends.low)) / c.packing.zero;
}

double kept(double logit) { return 1 / (1 + std::exp(-logit)); }

/// Every gradient of one group; returns how many of its weights were clipped.
int64_t check_group(const WeightCase& c, const WeightQuantizer& quantizer, int64_t row,
                    int64_t group, std::span<const float> w, std::span<const float> weigh,
                    std::span<const float> gradient, const Clipping& d_clipping) {
  CAPTURE(row);
  CAPTURE(group);
  const Surrogate still(w, quantizer.scales()(row, group), quantizer.zeros()(row, group),
                        c.packing.max_code());
  const auto clipped_ends = [&](std::span<const double> v, double upper, double lower) {
    const Ends ends = ends_of(v);
    return Ends{kept(lower) * ends.low, kept(upper) * ends.high};
  };
  const std::vector<double> x = doubles(w), direction = doubles(weigh);
  const double upper = double(c.upper), lower = double(c.lower);
  const double scale = scale_of(c, clipped_ends(x, upper, lower));
  const auto value = [&](std::span<const double> v, double up, double low) {
    const Ends ends = clipped_ends(v, up, low);
    const bool apart = c.bounds == WeightQuantizer::Bounds::apart && !c.symmetric();
    return still.value(v, scale_of(c, ends) - scale, direction, apart ? &ends : nullptr);
  };
  check_slopes(x, gradient, [&](std::span<const double> v) { return value(v, upper, lower); });
  const auto slope = [&](double up, double low) {
    return (value(x, upper + up, lower + low) - value(x, upper - up, lower - low)) / 2e-6;
  };
  CHECK(double(d_clipping.upper(row, group)) ==
        doctest::Approx(slope(1e-6, 0)).epsilon(1e-4).scale(1));
  CHECK(double(d_clipping.lower(row, group)) ==
        doctest::Approx(slope(0, 1e-6)).epsilon(1e-4).scale(1));
  return still.clipped();
}

int64_t check_weights(const WeightCase& c) {
  constexpr int64_t kRows = 3, kCols = 72;
  ThreadPool pool(2);
  Matrix w(kRows, kCols, normals(kRows * kCols, c.packing.bits));
  WeightQuantizer quantizer(kRows, kCols, c.packing, c.stored_scales, c.bounds);
  const int64_t size = c.packing.group == 0 ? kCols : c.packing.group;
  for (int64_t r = 0; r < kRows && c.ties; ++r) {
    for (int64_t k = 0; k < kCols; k += size) {
      make_ties(w.row(r).subspan(size_t(k), size_t(std::min(size, kCols - k))));
    }
  }
  const Matrix weigh(kRows, kCols, normals(kRows * kCols, 8));
  Matrix out(kRows, kCols), gradient = weigh;
  Clipping clipping(kRows, quantizer.groups(), c.upper), d_clipping = clipping;
  std::fill(clipping.lower.values().begin(), clipping.lower.values().end(), c.lower);
  quantizer.forward(pool, w, clipping, out);
  quantizer.backward(pool, w, clipping, gradient, d_clipping, true);
  int64_t clipped = 0;
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t g = 0; g < quantizer.groups(); ++g) {
      const auto first = size_t(g * size), n = size_t(std::min(size, kCols - g * size));
      clipped += check_group(c, quantizer, r, g, w.row(r).subspan(first, n),
                             weigh.row(r).subspan(first, n), gradient.row(r).subspan(first, n),
                             d_clipping);
    }
  }
  return clipped;
}

}  // namespace

TEST_CASE("gradients through quantized weights are what finite differences say") {
  using Bounds = WeightQuantizer::Bounds;
  const auto packing = [](int bits, uint32_t group, bool five_levels = false) {
    return Packing{.bits = uint8_t(bits), .five_levels = five_levels, .group = group};
  };
  Packing symmetric = packing(4, 32);
  symmetric.zero_mode = ZeroMode::constant;
  symmetric.zero = 7;
  for (const Packing& p :
       {packing(2, 0), packing(2, 32, true), packing(3, 32), packing(4, 0), symmetric}) {
    for (const Bounds bounds : {Bounds::apart, Bounds::together}) {
      for (const bool ties : {false, true}) {
        CAPTURE(int(p.bits));
        CAPTURE(p.group);
        const bool apart = bounds == Bounds::apart;
        CAPTURE(apart);
        CAPTURE(ties);
        const WeightCase c{p, bounds, apart, ties, 0.4f, 0.1f};  // keeps 60 % and 52 %
        CHECK(check_weights(c) > 10);
      }
    }
  }
}

TEST_CASE("nothing comes through a range too small to be one") {
  ThreadPool pool(1);
  Matrix w(1, 32), out = w, ones = w;
  for (int64_t k = 0; k < 32; ++k) w(0, k) = 1e-7f * float(k % 5);
  std::fill(ones.values().begin(), ones.values().end(), 1.0f);
  for (const auto bounds : {WeightQuantizer::Bounds::apart, WeightQuantizer::Bounds::together}) {
    WeightQuantizer quantizer(1, 32, {.bits = 4}, true, bounds);
    Clipping clipping(1, 1, 1), d(1, 1, 5);
    Matrix gradient = ones;
    quantizer.forward(pool, w, clipping, out);
    quantizer.backward(pool, w, clipping, gradient, d, true);
    CHECK(d.upper(0, 0) == 0);
    CHECK(d.lower(0, 0) == 0);
    CHECK(std::equal(gradient.values().begin(), gradient.values().end(), ones.values().begin()));
  }
}
