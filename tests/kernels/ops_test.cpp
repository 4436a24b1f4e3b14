#include "kernels/reference/ops.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "tests/kernels/compare.h"

using namespace oq;
using namespace oq::test;

TEST_CASE("dense linears equal the reference for every type and odd shapes") {
  for (const cpu::Kernels* k : cpu::available_kernels()) {
    for (int64_t cols : {1, 7, 8, 64, 173}) {
      for (int64_t tokens : {1, 3, 5}) {
        const int64_t rows = 11;
        Rng rng(uint32_t(cols + tokens));
        auto w = random_floats(rng, size_t(rows * cols));
        std::vector<f16> half;
        std::vector<bf16> brain;
        for (float v : w) half.push_back(to_f16(v)), brain.push_back(to_bf16(v));
        const auto x = random_floats(rng, size_t(tokens * cols), 0.3f);
        const auto check = [&](cpu::DenseView::Type type, const void* data, auto&& values) {
          for (size_t i = 0; i < w.size(); ++i) w[i] = to_float(values[i]);
          std::vector<float> y(size_t(tokens * rows), NAN), truth(y.size());
          const cpu::DenseView view{type, data, rows, cols};
          k->dense(view, {x.data(), cols}, tokens, 0, 6, {y.data(), rows});
          k->dense(view, {x.data(), cols}, tokens, 6, rows, {y.data(), rows});
          reference::linear(w, {}, x, tokens, rows, cols, truth);
          CHECK_CLOSE(y, truth, 2e-5, 1e-5, 1e-11);
        };
        const std::vector<float> copy = w;
        check(cpu::DenseView::Type::f32, copy.data(), copy);
        check(cpu::DenseView::Type::f16, half.data(), half);
        check(cpu::DenseView::Type::bf16, brain.data(), brain);
      }
    }
  }
}

TEST_CASE("activations round to the nearest code, and bad ones poison their scale") {
  for (const cpu::Kernels* k : cpu::available_kernels()) {
    Rng rng(1);
    const auto x = random_floats(rng, 70, -0.4f, 3.0f);
    std::vector<int8_t> codes(96);
    std::vector<float> scales(6), sums(3);
    k->quantize_row(x.data(), 70, codes.data(), scales.data(), sums.data(), 3);
    for (size_t i = 0; i < 96; ++i) {
      const float value = i < 70 ? x[i] : 0.0f;
      CHECK(std::fabs(value - scales[i / 16] * float(codes[i])) <= scales[i / 16] * 0.5001f);
    }
    for (size_t b = 0; b < 3; ++b) {
      float sum = 0;
      for (size_t i = 32 * b; i < 32 * b + 32; ++i) sum += scales[i / 16] * float(codes[i]);
      CHECK(sums[b] == doctest::Approx(sum));
    }
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      auto y = x;
      y[50] = bad;
      k->quantize_row(y.data(), 70, codes.data(), scales.data(), sums.data(), 3);
      CHECK(std::isfinite(scales[2]));
      CHECK(std::isnan(scales[3]));
      CHECK(std::isnan(sums[1]));
    }
    const std::vector<float> zero(32, 0.0f);
    k->quantize_row(zero.data(), 32, codes.data(), scales.data(), sums.data(), 1);
    CHECK(scales[0] == 0.0f);
    CHECK(codes[5] == 0);
  }
}

TEST_CASE("a range is the smallest and the largest, and codes lie on the grid") {
  for (const cpu::Kernels* k : cpu::available_kernels()) {
    for (int64_t n : {1, 7, 33, 100}) {
      Rng rng(uint32_t(n) + 11);
      const auto x = random_floats(rng, size_t(n), 0.3f, 2.0f);
      float low = 0, high = 0;
      k->range(x.data(), n, &low, &high);
      CHECK(low == *std::min_element(x.begin(), x.end()));
      CHECK(high == *std::max_element(x.begin(), x.end()));
      for (int bits = 2; bits <= 8; ++bits) {
        // Half the range: values beyond it must clamp.
        const auto grid = ActivationGrid::of(low / 2, high / 2 + 0.1f, bits);
        const int64_t blocks = n / 32 + 1;
        std::vector<int8_t> codes(size_t(blocks * 32), int8_t(1));
        std::vector<int32_t> sums(codes.size() / 32);
        k->quantize_row_to(grid, x.data(), n, codes.data(), sums.data(), blocks);
        int total = 0;
        for (size_t i = 0; i < codes.size(); ++i) {
          const float code = i < size_t(n) ? grid.code(x[i]) - grid.base() : 0.0f;
          REQUIRE(float(codes[i]) == code);
          total += codes[i];
        }
        CHECK(std::accumulate(sums.begin(), sums.end(), 0) == total);
      }
    }
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      std::vector<float> x(40, 1.0f);
      x[37] = bad;
      float low = 0, high = 0;
      k->range(x.data(), 40, &low, &high);
      CHECK(std::isnan(low));
      CHECK(std::isnan(high));
    }
  }
}

TEST_CASE("norms equal the reference") {
  for (const cpu::Kernels* k : cpu::available_kernels()) {
    for (size_t n : {1u, 8u, 37u, 576u}) {
      Rng rng(uint32_t(n) + 2);
      const auto x = random_floats(rng, n, 0.5f, 4.0f), w = random_floats(rng, n, 1.0f);
      const auto b = random_floats(rng, n, 0.2f);
      std::vector<float> y(n), truth(n);
      k->rms_norm(x.data(), w.data(), 3e-4f, int64_t(n), y.data());
      reference::rms_norm(x, w, 3e-4, truth);
      CHECK_CLOSE(y, truth, 1e-6, 1e-5, 1e-12);
      k->layer_norm(x.data(), w.data(), b.data(), 3e-4f, int64_t(n), y.data());
      reference::layer_norm(x, w, b, 3e-4, truth);
      CHECK_CLOSE(y, truth, 2e-6, 1e-5, 1e-12);
    }
    // A large mean must not drown the variance.
    std::vector<float> x(64), w(64, 1.0f), b(64, 0.0f), y(64), truth(64);
    for (size_t i = 0; i < 64; ++i) x[i] = 1000.0f + float(i % 7);
    k->layer_norm(x.data(), w.data(), b.data(), 1e-5f, 64, y.data());
    reference::layer_norm(x, w, b, 1e-5, truth);
    CHECK_CLOSE(y, truth, 1e-4, 1e-4, 1e-9);
  }
}

TEST_CASE("activations equal the reference, gated and plain, near and far from zero") {
  const std::pair<Activation, float (*)(float)> all[] = {
      {Activation::silu, reference::silu},
      {Activation::gelu, reference::gelu},
      {Activation::gelu_tanh, reference::gelu_tanh},
      {Activation::relu, reference::relu}};
  const std::vector<float> far = {-1000.0f, -90.0f, 90.0f, 1000.0f, 0.0f, -0.0f, 1.0f, -1.0f};
  for (const cpu::Kernels* k : cpu::available_kernels()) {
    CAPTURE(std::string(k->name));
    for (const auto& row : all) {
      const Activation activation = row.first;
      float (*formula)(float) = row.second;
      CAPTURE(int(activation));
      for (size_t n : {1u, 8u, 37u, 576u}) {
        Rng rng(uint32_t(n) + 4);
        const auto x = random_floats(rng, n, 0.5f, 3.0f), up = random_floats(rng, n, 1.0f);
        std::vector<float> y(n), truth(n), in_place = x;
        k->activate(activation, x.data(), up.data(), int64_t(n), y.data());
        for (size_t i = 0; i < n; ++i) truth[i] = formula(x[i]) * up[i];
        CHECK_CLOSE(y, truth, 1e-6, 1e-5, 1e-11);
        k->activate(activation, in_place.data(), nullptr, int64_t(n), in_place.data());
        for (size_t i = 0; i < n; ++i) truth[i] = formula(x[i]);
        CHECK_CLOSE(in_place, truth, 1e-6, 1e-5, 1e-11);
      }
      std::vector<float> y(8), truth(8);
      k->activate(activation, far.data(), nullptr, 8, y.data());
      for (size_t i = 0; i < 8; ++i) truth[i] = formula(far[i]);
      CHECK_CLOSE(y, truth, 1e-6, 1e-5, 1e-12);
      const float nan = NAN;
      k->activate(activation, &nan, nullptr, 1, y.data());
      CHECK(std::isnan(y[0]));
    }
  }
}

TEST_CASE("a router's choice is its largest logits, weighed by their softmax") {
  const std::vector<float> logits = {0.5f, 2.0f, -1.0f, 2.0f, 1.0f};
  const auto two = reference::route(logits, 2);
  CHECK(two[0].expert == 1);
  CHECK(two[1].expert == 3);
  CHECK(two[0].weight == 0.5f);
  CHECK(two[1].weight == 0.5f);
  const auto three = reference::route(logits, 3);
  CHECK(three[2].expert == 4);
  CHECK(three[2].weight == doctest::Approx(std::exp(-1.0) / (2 + std::exp(-1.0))));
  CHECK(reference::route(std::vector<float>{NAN, 3.0f}, 1)[0].expert == 1);
}
