/// The CPU backend's linears with a scheme's activation quantization: integers against values.

#include "runtime/backend/cpu/linear.h"

#include <algorithm>
#include <cmath>
#include <random>

#include <doctest/doctest.h>

#include "kernels/reference/ops.h"
#include "tests/support.h"
#include "tests/tiny_oq.h"

using namespace oq;

namespace {

struct Case {
  const char* scheme;
  uint32_t weak_columns;
};

constexpr Case kCases[] = {{"w4a8", 0},  {"w4a8t", 3}, {"w3a6", 5},     {"w2a4", 0}, {"w8a8g32", 2},
                           {"w2*a8", 0}, {"w7a7", 1},  {"w5a5tg64", 0}, {"w6a2", 0}};

std::vector<float> random_rows(size_t n, float mean) {
  std::mt19937 rng(7);
  std::normal_distribution<float> normal(mean, 1.0f);
  std::vector<float> x(n);
  for (float& v : x) v = normal(rng);
  return x;
}

/// What the formulas say of one row: live columns rounded on the grid of their range, weak ones
/// as they are.
std::vector<double> truth_row(const CpuWeight& w, const ActivationGrid& grid, const float* x) {
  const auto dense = reference::dequantize(*w.packed);
  std::vector<double> y(size_t(w.rows()), 0.0);
  for (int64_t n = 0; n < w.rows(); ++n) {
    size_t weak = 0;
    for (int64_t k = 0; k < w.cols(); ++k) {
      double value = x[k];
      if (weak < w.weak.size() && int64_t(w.weak[weak]) == k) {
        ++weak;
      } else {
        value = double(grid.scale) * double(grid.code(x[k]) - grid.zero);
      }
      y[size_t(n)] += double(dense[size_t(n * w.cols() + k)]) * value;
    }
  }
  return y;
}

std::pair<float, float> live_range(const CpuWeight& w, const float* x) {
  float low = INFINITY, high = -INFINITY;
  for (int64_t k = 0; k < w.cols(); ++k) {
    if (std::find(w.weak.begin(), w.weak.end(), uint32_t(k)) != w.weak.end()) continue;
    low = std::min(low, x[k]);
    high = std::max(high, x[k]);
  }
  return {low, high};
}

}  // namespace

TEST_CASE("integer activations compute what rounding by value does") {
  const test::TempDir dir;
  for (const Case& c : kCases) {
    CAPTURE(c.scheme);
    test::TinyOq tiny;
    tiny.scheme = c.scheme;
    tiny.weak_columns = c.weak_columns;
    const auto file = test::make_tiny_oq(dir / "m.oq", tiny);
    const CpuWeight w(file, file->tensor("blocks.0.down"));
    const Scheme scheme = Scheme::parse(c.scheme);
    const int64_t tokens = 5;
    for (float mean : {0.0f, 40.0f, -3.0f}) {  // 40: a range far from 0, zero far from the codes
      CAPTURE(mean);
      const auto x = random_rows(size_t(tokens * w.cols()), mean);
      const std::vector<int64_t> runs = {0, 2, tokens};  // two sequences
      for (const cpu::Kernels* kernels : cpu::available_kernels()) {
        ThreadPool pool(2);
        LinearRunner runner(pool, *kernels);
        const Linear linear{.weight = &w, .bias = nullptr};
        std::vector<float> y(size_t(tokens * w.rows()));
        runner.run({&linear, 1}, {x.data(), w.cols()}, tokens,
                   {.bits = scheme.activation_bits, .per_tensor = scheme.per_tensor}, runs, false,
                   {y.data(), w.rows()});
        for (int64_t m = 0; m < tokens; ++m) {
          auto [low, high] = live_range(w, &x[size_t(m * w.cols())]);
          for (int64_t other = 0; other < tokens && scheme.per_tensor; ++other) {
            if ((other < runs[1]) != (m < runs[1])) continue;
            const auto [l, h] = live_range(w, &x[size_t(other * w.cols())]);
            low = std::min(low, l);
            high = std::max(high, h);
          }
          const auto grid = ActivationGrid::of(low, high, scheme.activation_bits);
          const auto truth = truth_row(w, grid, &x[size_t(m * w.cols())]);
          double size = 0, error = 0;
          for (int64_t n = 0; n < w.rows(); ++n) {
            size = std::max(size, std::fabs(truth[size_t(n)]));
            error =
                std::max(error, std::fabs(truth[size_t(n)] - double(y[size_t(m * w.rows() + n)])));
          }
          CHECK(error <= 1e-5 * size);
        }
      }
    }
  }
}

TEST_CASE("an activation that is not finite poisons its row and no other") {
  const test::TempDir dir;
  test::TinyOq tiny;
  tiny.scheme = "w4a8";
  const auto file = test::make_tiny_oq(dir / "m.oq", tiny);
  const CpuWeight w(file, file->tensor("blocks.0.down"));
  for (const cpu::Kernels* kernels : cpu::available_kernels()) {
    ThreadPool pool(1);
    LinearRunner runner(pool, *kernels);
    auto x = random_rows(size_t(2 * w.cols()), 0.0f);
    x[3] = NAN;
    const Linear linear{.weight = &w, .bias = nullptr};
    std::vector<float> y(size_t(2 * w.rows()));
    runner.run({&linear, 1}, {x.data(), w.cols()}, 2, {.bits = 8}, std::vector<int64_t>{0, 2},
               false, {y.data(), w.rows()});
    CHECK(std::isnan(y[0]));
    CHECK(std::isfinite(y[size_t(w.rows())]));
  }
}
