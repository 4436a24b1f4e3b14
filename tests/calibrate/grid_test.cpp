#include "tools/calibrate/solver/grid.h"

#include <cmath>
#include <limits>
#include <random>

#include <doctest/doctest.h>

#include "format/error.h"
#include "format/half.h"

namespace oq::calibrate {
namespace {

GridOptions options_of(int bits, bool symmetric = false, Tuning tuning = Tuning::minmax) {
  GridOptions o;
  o.packing.bits = uint8_t(bits);
  o.tuning = tuning;
  if (symmetric) {
    o.packing.zero_mode = ZeroMode::constant;
    o.packing.zero = int16_t(1 << (bits - 1));
  }
  return o;
}

std::vector<float> random_row(size_t n, uint32_t seed, double shift = 0) {
  std::mt19937 random(seed);
  std::vector<float> row(n);
  for (float& v : row) {
    double sum = shift;
    for (int i = 0; i < 4; ++i) sum += double(random()) / 4294967296.0 - 0.5;
    v = float(0.1 * sum * std::fabs(sum));
  }
  return row;
}

double error_of(std::span<const float> row, double scale, int zero, int max_code,
                std::span<const float> importance = {}) {
  double sum = 0;
  for (size_t i = 0; i < row.size(); ++i) {
    const double t = std::clamp(std::nearbyint(double(float(row[i] / float(scale)))) + zero, 0.0,
                                double(max_code));
    const double e = std::fabs(double(row[i]) - scale * (t - zero));
    sum += importance.empty() ? std::pow(e, 2.4) : double(importance[i]) * e * e;
  }
  return sum;
}

}  // namespace

TEST_CASE("minmax grids") {
  const std::vector<float> row = {-1.0f, 0.25f, 2.5f};
  GridOptions o = options_of(3);
  o.fp32_scales = true;
  Grid g = fit_grid(row, o, 1);
  CHECK(g.scale == 0.5f);
  CHECK(g.zero == 2);
  CHECK(g.code(-1.0f, 7) == 0);
  CHECK(g.code(0.25f, 7) == 2);  // a tie, before the zero point is added
  CHECK(g.code(0.75f, 7) == 4);
  CHECK(g.code(100.0f, 7) == 7);
  CHECK(g.code(-100.0f, 7) == 0);
  CHECK(g.value(7) == 2.5f);

  SUBCASE("0 is always in the range") {
    g = fit_grid(std::vector<float>{0.5f, 0.7f}, o, 1);
    CHECK(g.zero == 0);
    CHECK(g.scale == doctest::Approx(0.1));
    g = fit_grid(std::vector<float>{-0.5f, -0.7f}, o, 1);
    CHECK(g.zero == 7);
  }
  SUBCASE("a group of zeros counts as -1..1") {
    g = fit_grid(std::vector<float>(4), o, 1);
    CHECK(g.scale == doctest::Approx(2.0 / 7));
    CHECK(g.value(g.code(0, 7)) == 0);
  }
  SUBCASE("symmetric: the packing's constant decides which end is clipped") {
    o = options_of(3, true);
    g = fit_grid(row, o, 1);
    CHECK(g.scale == 0.625f);  // 2.5 / 4: the positive end is clipped
    CHECK(g.zero == 4);
    CHECK(g.value(g.code(2.5f, 7)) == 1.875f);
    o.packing.zero = 3;
    g = fit_grid(row, o, 1);
    CHECK(g.scale == to_float(to_f16(2.5f / 3)));
    CHECK(g.code(2.5f, 7) == 6);
    o.packing.zero = 0;
    CHECK_THROWS_AS(fit_grid(row, o, 1), Error);
  }
  SUBCASE("five levels") {
    o = options_of(2);
    o.packing.five_levels = true;
    g = fit_grid(std::vector<float>{-1.0f, 1.0f}, o, 1);
    CHECK(g.scale == 0.5f);
    CHECK(g.zero == 2);
    CHECK(g.code(1.0f, 4) == 4);
  }
}

TEST_CASE("scales are what a file stores before any code is chosen") {
  for (Tuning tuning : {Tuning::minmax, Tuning::mse}) {
    for (uint32_t seed = 0; seed < 20; ++seed) {
      const Grid g = fit_grid(random_row(50, seed), options_of(4, seed % 2 == 0, tuning), 40);
      CHECK(to_float(to_f16(g.scale)) == g.scale);
      CHECK(g.scale > 0);
    }
    const Grid tiny =
        fit_grid(std::vector<float>{1e-30f, -1e-30f}, options_of(4, false, tuning), 10);
    CHECK(tiny.scale == to_float(f16{1}));
    CHECK_THROWS_AS(fit_grid(std::vector<float>{1e30f}, options_of(4, false, tuning), 10), Error);
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      CHECK_THROWS_AS(fit_grid(std::vector<float>{0, bad, 1}, options_of(4, false, tuning), 10),
                      Error);
    }
  }
}

TEST_CASE("mse: no grid of those tried is better") {
  for (int bits : {2, 3, 4, 5}) {
    for (bool symmetric : {false, true}) {
      for (bool fp32 : {false, true}) {
        for (uint32_t seed = 0; seed < 6; ++seed) {
          CAPTURE(bits);
          CAPTURE(symmetric);
          CAPTURE(seed);
          const auto row = random_row(30 + 40 * seed, seed, seed < 3 ? 0 : 1.5);
          std::vector<float> importance;
          if (seed % 3 == 1) importance = random_row(row.size(), seed + 100);
          for (float& h : importance) h = h * h;
          GridOptions o = options_of(bits, symmetric, Tuning::mse);
          o.fp32_scales = fp32;
          const int steps = seed % 2 == 0 ? 40 : 100, top = (1 << bits) - 1;
          const auto [low, high] = std::minmax_element(row.begin(), row.end());
          const double least = std::min(0.0, double(*low)), most = std::max(0.0, double(*high));
          const double full =
              symmetric ? std::max(-least, most) / o.packing.zero : (most - least) / top;
          double best = std::numeric_limits<double>::max();
          for (int i = 1; i <= steps; ++i) {
            float scale = float(full * i / steps);
            if (!fp32) scale = to_float(to_f16(scale));
            for (int zero = symmetric ? o.packing.zero : 0;
                 zero <= (symmetric ? o.packing.zero : top); ++zero) {
              best = std::min(best, error_of(row, double(scale), zero, top, importance));
            }
          }
          const Grid g = fit_grid(row, o, steps, importance);
          CHECK(error_of(row, double(g.scale), g.zero, top, importance) <= best * (1 + 1e-5));
          const double ratio = double(g.scale) / full * steps;  // a scale that was to be tried
          CHECK(std::fabs(ratio - std::nearbyint(ratio)) < (fp32 ? 1e-3 : 0.1));
        }
      }
    }
  }
}

TEST_CASE("mse: of equal grids the first wins, and a weight on the grid costs nothing") {
  // -4..3 in steps of 1/4 lie on the whole range's grid exactly.
  std::vector<float> row;
  for (int i = -4; i < 4; ++i) row.push_back(float(i) / 4);
  GridOptions o = options_of(3, false, Tuning::mse);
  o.fp32_scales = true;
  Grid g = fit_grid(row, o, 100);
  CHECK(g.scale == 0.25f);
  CHECK(g.zero == 4);
  // One weight: many grids hit it or come equally close to it; scale 1/7 with zero point 0 holds
  // 1 exactly at code 7 only, and so does no smaller scale.
  g = fit_grid(std::vector<float>{1.0f}, o, 100);
  CHECK(g.value(g.code(1.0f, 7)) == doctest::Approx(1.0f));
  g = fit_grid(std::vector<float>{0, 0, 0}, o, 100);  // all are equal
  CHECK(g.scale == doctest::Approx(2.0 / 7 / 100));
  CHECK(g.zero == 0);
}

}  // namespace oq::calibrate
