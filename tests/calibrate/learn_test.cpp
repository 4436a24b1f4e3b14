/// The parts that learning is made of: straight-through quantizers, losses, AdamW.

#include <algorithm>
#include <cmath>
#include <random>

#include <doctest/doctest.h>

#include "format/error.h"
#include "format/scheme.h"
#include "kernels/reference/ops.h"
#include "tests/calibrate/problem.h"
#include "tools/calibrate/learn/adamw.h"
#include "tools/calibrate/learn/loss.h"
#include "tools/calibrate/learn/vector_math.h"
#include "tools/calibrate/learn/weight_quantizer.h"

using namespace oq;
using namespace oq::calibrate;
using test::normals;

namespace {

Matrix random_matrix(int64_t rows, int64_t cols, uint32_t seed, float mean = 0) {
  return {rows, cols, normals(size_t(rows * cols), seed, mean)};
}

}  // namespace

TEST_CASE("a start that knows the size of inputs loses less of the output") {
  ThreadPool pool(2);
  const Matrix w = random_matrix(12, 96, 3);
  std::vector<float> importance = normals(96, 4);
  for (float& h : importance) h = std::exp(2 * h);
  for (const uint32_t group : {0u, 32u}) {
    const GridOptions options{.packing = {.bits = 3, .group = group}, .tuning = Tuning::mse};
    const auto loss = [&](std::span<const float> known) {
      WeightQuantizer quantizer(12, 96, options.packing);
      Matrix out(12, 96);
      quantizer.forward(pool, w, quantizer.searched(pool, w, options, known), out);
      double sum = 0;
      for (int64_t r = 0; r < 12; ++r) {
        for (int64_t k = 0; k < 96; ++k) {
          sum += double(importance[size_t(k)]) * std::pow(out(r, k) - w(r, k), 2);
        }
      }
      return sum;
    };
    CHECK(loss(importance) < 0.9 * loss({}));
  }
}

TEST_CASE("with bounds apart, a clipped weight moves its own end alone, and others both") {
  ThreadPool pool(1);
  const Packing packing{.bits = 3};
  const Matrix w = random_matrix(1, 64, 5);
  const Clipping clipping(1, 1, 0.3f);  // keeps 57 %
  const auto gradients = [&](WeightQuantizer::Bounds bounds, auto takes_part) {
    WeightQuantizer quantizer(1, 64, packing, true, bounds);
    Matrix out(1, 64), d(1, 64);
    quantizer.forward(pool, w, clipping, out);
    const auto [low, high] = std::minmax_element(out.values().begin(), out.values().end());
    const float step = quantizer.scales()(0, 0);
    int64_t count = 0;
    for (int64_t k = 0; k < 64; ++k) {
      const int side = w(0, k) > *high + step / 2 ? 1 : w(0, k) < *low - step / 2 ? -1 : 0;
      if (!takes_part(side)) continue;
      d(0, k) = side == 0 ? w(0, k) : 1;
      ++count;
    }
    REQUIRE(count > 2);
    Clipping slope(1, 1, 0);
    quantizer.backward(pool, w, clipping, d, slope, false);
    return std::tuple(slope.upper(0, 0), slope.lower(0, 0), float(count));
  };
  const auto [least, most] = std::minmax_element(w.values().begin(), w.values().end());
  const float kept = 1 / (1 + std::exp(-0.3f)), slope = kept * (1 - kept);
  using Bounds = WeightQuantizer::Bounds;
  const auto [top_upper, top_lower, top] = gradients(Bounds::apart, [](int s) { return s > 0; });
  CHECK(top_upper == doctest::Approx(top * *most * slope));
  CHECK(top_lower == 0);
  const auto [low_upper, low_lower, low] = gradients(Bounds::apart, [](int s) { return s < 0; });
  CHECK(low_upper == 0);
  CHECK(low_lower == doctest::Approx(low * *least * slope));
  const auto inside = [](int s) { return s == 0; };
  CHECK(gradients(Bounds::apart, inside) == gradients(Bounds::together, inside));
}

TEST_CASE("weak columns keep their weights in 16 bits, and have no part in what the others learn") {
  ThreadPool pool(2);
  constexpr int64_t kRows = 9, kCols = 80;
  const std::vector<uint32_t> weak = {0, 31, 32, 79};
  for (const char* scheme : {"w3a16", "w2*a16g32", "w4sa16"}) {
    for (const bool bf16 : {false, true}) {
      const std::string text = scheme;
      CAPTURE(text);
      CAPTURE(bf16);
      const GridOptions options{.packing = packing_of(Scheme::parse(text)), .tuning = Tuning::mse};
      Matrix w = random_matrix(kRows, kCols, 8), without = w;
      for (int64_t r = 0; r < kRows; ++r) {
        for (const uint32_t k : weak) {
          w(r, k) *= 50;  // which would be the range's end
          without(r, k) = 0;
        }
      }
      WeightQuantizer quantizer(kRows, kCols, options.packing), plain = quantizer;
      quantizer.keep_weak(weak, bf16);
      const std::vector<float> importance = normals(kCols, 4, 5);
      const Clipping clipping = plain.searched(pool, without, options, importance);
      const Clipping own = quantizer.searched(pool, w, options, importance);
      CHECK(std::equal(own.upper.values().begin(), own.upper.values().end(),
                       clipping.upper.values().begin()));
      Matrix out(kRows, kCols), expected(kRows, kCols);
      plain.forward(pool, without, clipping, expected);
      quantizer.forward(pool, w, clipping, out);
      Matrix d = random_matrix(kRows, kCols, 9), d_expected = d;
      const Matrix dq = d;
      for (int64_t r = 0; r < kRows; ++r) {
        for (const uint32_t k : weak) {
          expected(r, k) = bf16 ? to_float(to_bf16(w(r, k))) : to_float(to_f16(w(r, k)));
          d_expected(r, k) = 0;
        }
      }
      CHECK(std::ranges::equal(out.values(), expected.values()));
      Clipping slope(kRows, plain.groups(), 0), slope_expected = slope;
      plain.backward(pool, without, clipping, d_expected, slope_expected, true);
      quantizer.backward(pool, w, clipping, d, slope, true);
      CHECK(std::ranges::equal(slope.upper.values(), slope_expected.upper.values()));
      CHECK(std::ranges::equal(slope.lower.values(), slope_expected.lower.values()));
      for (int64_t r = 0; r < kRows; ++r) {
        for (const uint32_t k : weak) d_expected(r, k) = dq(r, k);  // straight through
      }
      CHECK(std::ranges::equal(d.values(), d_expected.values()));
      const QuantizedLinear q = quantizer.finish(w);
      CHECK(q.weak == weak);
      CHECK(q.packing.weak_bf16 == bf16);
      CHECK(std::ranges::equal(q.dequantize().values(), out.values()));
      (void)q.pack();  // which checks what a file holds
    }
  }
  WeightQuantizer quantizer(kRows, kCols, {.bits = 3});
  quantizer.keep_weak({5}, false);
  Matrix w = random_matrix(kRows, kCols, 8), out(kRows, kCols);
  w(4, 5) = 70000;
  CHECK_THROWS_WITH_AS(quantizer.forward(pool, w, {}, out), doctest::Contains("row 4, column 5"),
                       Error);
}

TEST_CASE("learned codes stand for the learned weights bit for bit") {
  ThreadPool pool(2);
  for (const char* scheme : {"w2*a16", "w2a16", "w3a16", "w4a16", "w8a16", "w2*a16g32", "w2a16g32",
                             "w3a16g32", "w4a16g32", "w8a16g32"}) {
    for (const bool symmetric : {false, true}) {
      for (const float mean : {0.0f, 9.0f}) {  // at 9, zero points lie outside the codes
        const std::string text = scheme;
        CAPTURE(text);
        CAPTURE(symmetric);
        CAPTURE(mean);
        Packing p = packing_of(Scheme::parse(text));
        if (symmetric) {
          p.zero_mode = ZeroMode::constant;
          p.zero = int16_t(p.max_code() / 2);
        }
        const Matrix w = random_matrix(11, 80, 8, mean);
        WeightQuantizer quantizer(11, 80, p);
        const Clipping clipping(11, quantizer.groups(), 1.5f);
        Matrix out(11, 80);
        quantizer.forward(pool, w, clipping, out);
        const QuantizedLinear q = quantizer.finish(w);
        if (!symmetric && p.bits < 8) {
          CHECK(q.packing.zero_mode == (mean > 0 ? ZeroMode::i16 : ZeroMode::code_width));
        }
        CHECK(q.packing.five_levels == p.five_levels);
        const int top = *std::max_element(q.codes.begin(), q.codes.end());
        CHECK(top >= p.max_code() - (symmetric ? 1 : 0));  // all levels that there are
        const Matrix back = q.dequantize();
        CHECK(std::equal(out.values().begin(), out.values().end(), back.values().begin()));
        const PackedBuilder builder = q.pack();
        const PackedView view(builder.layout(), builder.bytes().data());
        const std::vector<float> packed = reference::dequantize(view);
        CHECK(std::equal(packed.begin(), packed.end(), out.values().begin()));
      }
    }
  }
}

TEST_CASE("a weight that is not finite is named by its row") {
  ThreadPool pool(1);
  Matrix w = random_matrix(4, 40, 9), out = w;
  w(2, 7) = NAN;
  WeightQuantizer quantizer(4, 40, {.bits = 4});
  CHECK_THROWS_WITH_AS(quantizer.forward(pool, w, {}, out), doctest::Contains("row 2"), Error);
}

TEST_CASE("the vectorized exponential is within two units in the last place") {
  for (float x = -87; x <= 88; x += 0.0137f) {
    const double truth = std::exp(double(x));
    CHECK(std::fabs(double(fast_exp(x)) / truth - 1) < 2 * 0x1p-23);
  }
  CHECK(fast_exp(0) == 1);
  CHECK(fast_exp(-INFINITY) < 1e-37f);
}

TEST_CASE("the squared error is the mean, and its gradient adds up") {
  const std::vector<float> y = normals(3000, 1), target = normals(3000, 2);
  std::vector<float> d(y.size(), 0.5f);
  double truth = 0;
  for (size_t i = 0; i < y.size(); ++i) truth += std::pow(double(y[i]) - double(target[i]), 2);
  CHECK(squared_error(y, target, 0.25, d) == doctest::Approx(0.25 * truth / 3000));
  CHECK(d[7] == doctest::Approx(0.5 + 0.25 * 2 * double(y[7] - target[7]) / 3000));
}

TEST_CASE("a relative error does not see how large a token is") {
  constexpr int64_t kRows = 3, kCols = 40;
  std::vector<float> y = normals(kRows * kCols, 1), target = normals(kRows * kCols, 2);
  std::vector<float> d(y.size());
  const double before = relative_error(y, target, kCols, 1.0, d);
  double truth = 0;
  for (size_t t = 0; t < kRows; ++t) {
    double error = 0, size = 0;
    for (size_t i = t * kCols; i < (t + 1) * kCols; ++i) {
      error += std::pow(double(y[i]) - double(target[i]), 2);
      size += std::pow(double(target[i]), 2);
    }
    truth += error / size / kRows;
  }
  CHECK(before == doctest::Approx(truth));
  for (size_t i = 0; i < kCols; ++i) y[i] *= 500, target[i] *= 500;
  CHECK(relative_error(y, target, kCols, 1.0, d) == doctest::Approx(before));
}

TEST_CASE("losses have the gradients that finite differences say") {
  constexpr int64_t kRows = 6, kCols = 40;
  const std::vector<float> target = normals(kRows * kCols, 2);
  std::vector<float> y = normals(kRows * kCols, 3);
  for (size_t i = 0; i < y.size(); ++i) y[i] = 0.5f * y[i] + target[i];
  const auto check = [&](std::vector<float>& x, const auto& loss) {
    std::vector<float> d(x.size(), 0.25f), unused(x.size());
    const double value = loss(x, d);
    CHECK(value > 0);
    for (size_t i = 0; i < x.size(); i += 7) {
      CAPTURE(i);
      const float before = x[i], step = std::max(1e-3f, 1e-3f * std::fabs(before));
      x[i] = before + step;
      const double up = loss(x, unused), above = x[i];
      x[i] = before - step;
      const double down = loss(x, unused), below = x[i];
      x[i] = before;
      CHECK(double(d[i]) - 0.25 ==
            doctest::Approx((up - down) / (above - below)).epsilon(0.01).scale(0.001));
    }
  };
  check(y, [&](const std::vector<float>& x, std::vector<float>& d) {
    return log_cosine(x, target, kCols, 0.5, d);
  });
  check(y, [&](const std::vector<float>& x, std::vector<float>& d) {
    return relative_error(x, target, kCols, 0.5, d);
  });
  constexpr int64_t kTokens = 12;  // rows of probabilities, below the diagonal
  std::vector<float> p(kTokens * kTokens), q = p;
  for (std::vector<float>* map : {&p, &q}) {
    const std::vector<float> scores = normals(p.size(), map == &p ? 4 : 5);
    for (int64_t t = 0; t < kTokens; ++t) {
      float sum = 0;
      for (int64_t j = 0; j <= t; ++j) sum += std::exp(scores[size_t(t * kTokens + j)]);
      for (int64_t j = 0; j <= t; ++j) {
        (*map)[size_t(t * kTokens + j)] = std::exp(scores[size_t(t * kTokens + j)]) / sum;
      }
    }
  }
  check(p, [&](const std::vector<float>& x, std::vector<float>& d) {
    return map_divergence(x, q, kTokens, 0.5, d);
  });
  std::vector<float> unused(p.size());
  CHECK(map_divergence(q, q, kTokens, 1, unused) == 0);
}

TEST_CASE("AdamW's first steps are those of the paper's formulas") {
  std::vector<float> x = {1, -2, 0.02f}, g = {0.5f, -3, 4};
  AdamW adam;
  adam.add("a", x, g, 0.01, 0.015f);
  adam.step();  // every first step is the rate
  CHECK(x[0] == doctest::Approx(1 - 0.01));
  CHECK(x[1] == doctest::Approx(0.015));  // not below the least
  CHECK(x[2] == doctest::Approx(0.015));
  g = {-0.5f, 0, 0};
  adam.step();
  const double m = 0.9 * 0.05 - 0.05, v = 0.999 * 0.00025 + 0.00025;
  const double step = 0.01 * (m / (1 - 0.81)) / (std::sqrt(v / (1 - 0.998001)) + 1e-8);
  CHECK(x[0] == doctest::Approx(0.99 - step).epsilon(1e-6));
  std::vector<float> half = {1};
  const std::vector<float> slope = {0.5f};
  AdamW slower;
  slower.add("b", half, slope, 0.01);
  slower.step(0.5);
  CHECK(half[0] == doctest::Approx(1 - 0.005));
  g[1] = NAN;
  CHECK_THROWS_WITH_AS(adam.step(), doctest::Contains("a: a gradient is not finite"), Error);
}
