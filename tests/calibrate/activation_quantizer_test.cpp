#include "tools/calibrate/activation_quantizer.h"

#include <cmath>

#include <doctest/doctest.h>

#include "kernels/kv_grid.h"
#include "kernels/reference/ops.h"
#include "tests/calibrate/problem.h"

namespace oq::calibrate {
namespace {

using test::normals;
using test::on_grid;
using test::Problem;

/// What straight-through rounding differentiates: R(u) counts as u plus a constant.
double straight_through(std::span<const double> x, std::span<const float> at, int bits) {
  const KvGrid grid = KvGrid::of(at, bits);
  double least = x[0], most = x[0];
  for (double v : x) {
    least = std::min(least, v);
    most = std::max(most, v);
  }
  const double top = (1 << bits) - 1, scale = (most - least) / top;
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double u = (double(at[i]) - double(to_float(grid.low))) / double(to_float(grid.scale));
    const double code = grid.code(at[i]);
    const bool inside = u + 0.5 >= 0 && u + 0.5 < top + 1;
    const double now = inside ? (x[i] - least) / scale + (code - u) : code;
    sum += (scale * now + least) * std::sin(1.0 + double(i));
  }
  return sum;
}

}  // namespace

TEST_CASE("inputs are quantized as the reference op does, weak channels apart") {
  ThreadPool pool(2);
  const Problem p(1, 12, 3, 40, 1);
  const std::vector<uint32_t> weak = {0, 7};
  for (int bits : {2, 4, 8}) {
    for (bool per_tensor : {false, true}) {
      for (bool with_weak : {false, true}) {
        const auto& skipped = with_weak ? weak : std::vector<uint32_t>{};
        const auto found = on_grid(pool, p.windows[0], 12,
                                   {.bits = bits, .per_tensor = per_tensor, .weak = skipped});
        auto expected = p.windows[0];
        const size_t step = per_tensor ? expected.size() : 12;
        for (size_t at = 0; at < expected.size(); at += step) {
          std::vector<size_t> live;
          for (size_t i = at; i < at + step; ++i) {
            if (!with_weak || (i % 12 != 0 && i % 12 != 7)) live.push_back(i);
          }
          std::vector<float> values;
          for (size_t i : live) values.push_back(expected[i]);
          reference::fake_quantize(values, bits);
          for (size_t i = 0; i < live.size(); ++i) expected[live[i]] = values[i];
        }
        CHECK(found == expected);
      }
    }
  }
}

TEST_CASE("a constant input gives no NaN") {
  ThreadPool pool(1);
  const std::vector<float> x(24, 0.75f), zeros(24);
  for (float v : on_grid(pool, x, 12, {.bits = 8, .per_tensor = true})) CHECK(std::isfinite(v));
  for (float v : on_grid(pool, zeros, 12, {.bits = 4})) CHECK(v == 0);
}

TEST_CASE("the cache's quantizer equals KvGrid, and its gradient straight-through rounding") {
  ThreadPool pool(2);
  for (const int bits : {2, 4, 8}) {
    const std::vector<float> x = normals(20, 4);
    const ActivationQuantizer q{.kind = ActivationQuantizer::Kind::cache, .bits = bits};
    std::vector<float> out(x.size()), truth = x, d(x.size());
    q.forward(pool, x.data(), 1, 20, 20, out.data());
    reference::fake_quantize_kv(truth, bits);
    CHECK(out == truth);
    for (size_t i = 0; i < d.size(); ++i) d[i] = float(std::sin(1.0 + double(i)));
    q.backward(pool, x.data(), 1, 20, 20, d.data());
    for (size_t i = 0; i < x.size(); ++i) {
      CAPTURE(i);
      std::vector<double> up(x.begin(), x.end()), down = up;
      up[i] += 1e-6;
      down[i] -= 1e-6;
      const double slope = (straight_through(up, x, bits) - straight_through(down, x, bits)) / 2e-6;
      CHECK(double(d[i]) == doctest::Approx(slope).epsilon(0.01).scale(1));
    }
  }
}

TEST_CASE("weak columns are neither quantized nor in the range, forwards and backwards") {
  ThreadPool pool(2);
  const std::vector<uint32_t> weak = {2, 5};
  for (const bool per_tensor : {false, true}) {
    std::vector<float> x = normals(3 * 8, 6), d = normals(x.size(), 7);
    for (int64_t t = 0; t < 3; ++t) x[size_t(8 * t + 2)] = 50.0f;
    ActivationQuantizer q{.bits = 4, .per_tensor = per_tensor, .weak = weak};
    std::vector<float> out(x.size()), live, live_d;
    const std::vector<float> d_before = d;
    q.forward(pool, x.data(), 3, 8, 8, out.data());
    q.backward(pool, x.data(), 3, 8, 8, d.data());
    for (size_t i = 0; i < x.size(); ++i) {
      if (i % 8 == 2 || i % 8 == 5) {
        CHECK(out[i] == x[i]);
        CHECK(d[i] == d_before[i]);
      } else {
        live.push_back(x[i]);
        live_d.push_back(d_before[i]);
      }
    }
    q.weak = {};
    std::vector<float> live_out(live.size());
    q.forward(pool, live.data(), 3, 6, 6, live_out.data());
    q.backward(pool, live.data(), 3, 6, 6, live_d.data());
    size_t next = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      if (i % 8 == 2 || i % 8 == 5) continue;
      CHECK(out[i] == live_out[next]);
      CHECK(d[i] == live_d[next++]);
    }
  }
}

}  // namespace oq::calibrate
