#include "tools/calibrate/solver/awrq.h"

#include <cmath>

#include <doctest/doctest.h>

#include "format/error.h"
#include "tests/calibrate/problem.h"
#include "tools/calibrate/smoothing.h"
#include "tools/calibrate/solver/gptq.h"

namespace oq::calibrate {
namespace {

using test::on_grid;
using test::Plain;
using test::Problem;

Moments quantized_moments(ThreadPool& pool, const Problem& p, int bits, bool per_tensor) {
  MomentAccumulator sums(p.w.cols(), true);
  for (const auto& x : p.windows) {
    sums.add(pool, x, on_grid(pool, x, p.w.cols(), {.bits = bits, .per_tensor = per_tensor}));
  }
  return std::move(sums).finish();
}

/// AWRQ as it is published, in double, column by column: with D = W - Q and G = W M,
///   first column   D = -G H^-1 + [(w - q) + (G H^-1)_B] [(H^-1)_BB]^-1 (H^-1)_B:
///   later ones     D = (w - q) [(H^-1)_BB]^-1 (H^-1)_B:, H restricted to the columns left
/// `grid` holds one grid per row; the first column is rounded before any correction.
Matrix published(const Matrix& w, const Plain& h, const Plain& cross,
                 const QuantizedLinear& grids) {
  const int64_t n = w.cols();
  const Plain linear_term = Plain(w).times(cross).times(h.inverse());
  Plain now(w);
  for (int64_t i = 0; i < n; ++i) {
    const Plain inverse = h.corner(i, n).inverse();
    for (int64_t r = 0; r < w.rows(); ++r) {
      const Grid& g = grids.grid(r, 0);
      const double q = double(g.value(g.code(float(now(r, i)), grids.packing.max_code())));
      double error = now(r, i) - q;
      if (i == 0) error += linear_term(r, 0);
      for (int64_t j = i; j < n; ++j) {
        if (i == 0) now(r, j) += linear_term(r, j);
        now(r, j) -= error / inverse(0, 0) * inverse(0, j - i);
      }
    }
  }
  Matrix q(w.rows(), n);
  for (size_t i = 0; i < now.v.size(); ++i) q.values()[i] = float(now.v[i]);
  return q;
}

/// |W X - Q X̂|^2 over all windows.
double output_error(ThreadPool& pool, const Problem& p, const Matrix& q, int bits,
                    bool per_tensor) {
  double sum = 0;
  const auto cols = size_t(p.w.cols());
  for (const auto& x : p.windows) {
    const auto quantized = on_grid(pool, x, p.w.cols(), {.bits = bits, .per_tensor = per_tensor});
    for (size_t t = 0; t < x.size() / cols; ++t) {
      for (int64_t r = 0; r < q.rows(); ++r) {
        double y = 0;
        for (size_t k = 0; k < cols; ++k) {
          y += double(p.w.row(r)[k]) * double(x[t * cols + k]) -
               double(q.row(r)[k]) * double(quantized[t * cols + k]);
        }
        sum += y * y;
      }
    }
  }
  return sum;
}

double largest_difference(const Matrix& a, const Matrix& b) {
  double most = 0;
  for (size_t i = 0; i < a.values().size(); ++i) {
    most = std::max(most, std::fabs(double(a.values()[i]) - double(b.values()[i])));
  }
  return most;
}

}  // namespace

TEST_CASE("the published AWRQ is GPTQ on the reformulated weights") {
  ThreadPool pool(1);
  for (uint32_t seed = 0; seed < 6; ++seed) {
    CAPTURE(seed);
    Problem p(4, 10 + 4 * seed, seed);
    const Moments m = quantized_moments(pool, p, 4, true);
    const InverseFactor f = invert(pool, m.hessian, column_order(p.w.cols(), {}, {}));
    for (uint32_t k : f.dead) {  // small channels, all of whose codes are the zero point
      for (int64_t r = 0; r < 4; ++r) p.w(r, k) = 0;
    }
    const Matrix start = reformulate(pool, p.w, m.cross, f);
    const Plain h = test::damped(m.hessian, 0.01);
    const Plain expected = Plain(p.w).times(Plain(m.cross)).times(h.inverse());
    double most = 0;
    for (size_t i = 0; i < expected.v.size(); ++i) {
      const double change = double(start.values()[i]) - double(p.w.values()[i]);
      most = std::max(most, std::fabs(change - expected.v[i]));
    }
    CHECK(most < 1e-5);

    GptqOptions o;
    o.grid.packing.bits = 3;
    o.grid.fp32_scales = true;
    o.first_from_original = true;
    const auto found = gptq(pool, p.w, f, o, &start).linear;
    CHECK(largest_difference(found.dequantize(), published(p.w, h, Plain(m.cross), found)) < 1e-5);

    o.first_from_original = false;  // grids fitted to W' too: nothing but GPTQ on W'
    const auto a = gptq(pool, start, f, o).linear;
    const auto b = gptq(pool, start, f, o, &start).linear;
    CHECK(a.codes == b.codes);
  }
}

TEST_CASE("reformulated weights come closest to the outputs, in any order of visit") {
  ThreadPool pool(2);
  const Problem p(30, 48, 7);
  for (bool per_tensor : {true, false}) {
    const Moments m = quantized_moments(pool, p, 4, per_tensor);
    const auto score = diagonal(m.hessian);
    const InverseFactor natural = invert(pool, m.hessian, column_order(48, {}, {}));
    const InverseFactor ordered =
        invert(pool, m.hessian, column_order(48, std::vector<uint32_t>{5}, score));
    const Matrix start = reformulate(pool, p.w, m.cross, natural);
    CHECK(largest_difference(start, reformulate(pool, p.w, m.cross, ordered)) < 1e-5);
    const double before = output_error(pool, p, p.w, 4, per_tensor);
    const double after = output_error(pool, p, start, 4, per_tensor);
    CHECK(after < before);
    for (float shift : {-0.02f, 0.02f}) {  // and no neighbour is clearly better
      Matrix other = start;
      for (float& v : other.values()) v *= 1 + shift;
      CHECK(output_error(pool, p, other, 4, per_tensor) > after);
    }
    // AWRQ beats GPTQ on the same Hessian, and both beat rounding.
    GptqOptions o;
    const auto error = [&](const Matrix& q) { return output_error(pool, p, q, 4, per_tensor); };
    const double awrq = error(gptq(pool, p.w, natural, o, &start).linear.dequantize());
    const double plain = error(gptq(pool, p.w, natural, o).linear.dequantize());
    CHECK(awrq < plain);
    CHECK(plain < error(round_to_nearest(pool, p.w, o.grid).dequantize()));
  }
}

TEST_CASE("where quantizing inputs changes nothing, AWRQ is GPTQ") {
  ThreadPool pool(1);
  Problem p(6, 20, 5);
  for (auto& x : p.windows) {
    for (float& v : x) v = std::clamp(std::nearbyint(16 * v) / 16, -4.0f, 4.0f);
    x[0] = -4;
    x[1] = 11.9375f;  // 255 sixteenths above: the 8-bit grid holds every value
  }
  const Moments m = quantized_moments(pool, p, 8, true);
  for (float v : m.cross.values()) CHECK_EQ(v, 0.0f);
  const InverseFactor f = invert(pool, m.hessian, column_order(20, {}, {}));
  const Matrix start = reformulate(pool, p.w, m.cross, f);
  CHECK(largest_difference(start, p.w) == 0);
  CHECK(largest_difference(p.moments(pool).hessian, m.hessian) == 0);
}

TEST_CASE("dead channels stay out of the reformulation") {
  ThreadPool pool(1);
  Problem p(6, 20, 5);
  for (auto& x : p.windows) {
    for (size_t t = 0; t < x.size(); t += 20) x[t + 3] = 0;
  }
  const Moments m = quantized_moments(pool, p, 6, false);
  const InverseFactor f = invert(pool, m.hessian, column_order(20, {}, {}));
  REQUIRE(f.dead == std::vector<uint32_t>{3});
  const Matrix start = reformulate(pool, p.w, m.cross, f);
  for (int64_t r = 0; r < 6; ++r) CHECK(start(r, 3) == 0);
  CHECK_THROWS_AS(reformulate(pool, p.w, Matrix(19, 20), f), Error);
}

TEST_CASE("smoothing scales") {
  const std::vector<float> a = {16, 4, 1e-4f, 0, 9}, w = {4, 1, 100, 1, 0};
  const auto s = smoothing_scales(a, w, 0.5, 0.01);
  CHECK(s[0] == doctest::Approx(2));
  CHECK(s[1] == doctest::Approx(2));
  CHECK(s[2] == doctest::Approx(0.01));                 // below the least scale
  CHECK(s[3] == doctest::Approx(0.01));                 // a channel that is never active
  CHECK(s[4] == doctest::Approx(3 / std::sqrt(1e-5)));  // weights of 0 do not give infinity
  CHECK(smoothing_scales(a, w, 1, 0.01)[0] == doctest::Approx(16));
  CHECK(smoothing_scales(a, w, 0, 0.01)[0] == doctest::Approx(0.25));
  CHECK_THROWS_AS(smoothing_scales(a, w, 1.5, 0.01), Error);
  CHECK_THROWS_AS(smoothing_scales(a, w, 0.5, 0), Error);
  CHECK_THROWS_AS(smoothing_scales(a, std::vector<float>(4), 0.5, 0.1), Error);

  std::vector<float> most(2);
  update_channel_max(std::vector<float>{1, -2, -3, 1}, most);
  update_channel_max(std::vector<float>{2, 1}, most);
  CHECK(most == std::vector<float>{3, 2});
}

}  // namespace oq::calibrate
