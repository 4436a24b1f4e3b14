#include "tools/calibrate/solver/hessian.h"

#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include "format/error.h"
#include "tests/calibrate/problem.h"

namespace oq::calibrate {
namespace {

using test::Plain;
using test::Problem;

/// U^T U H - 1 for the factor's permuted, damped H: the largest element.
double inverse_error(const InverseFactor& f, const Plain& h) {
  const auto& order = f.columns.order;
  const auto n = int64_t(order.size());
  Plain permuted(n, n), upper(f.upper), transposed(n, n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      permuted(i, j) = h(order[size_t(i)], order[size_t(j)]);
      transposed(i, j) = upper(j, i);
    }
  }
  const Plain product = transposed.times(upper).times(permuted);
  double most = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) most = std::max(most, std::fabs(product(i, j) - (i == j)));
  }
  return most;
}

}  // namespace

TEST_CASE("H is 2/N of the sum of x x^T, M of (x - x̂) x̂^T, whatever the number of threads") {
  for (int64_t cols : {1, 7, 300, 530}) {  // one, some and many tiles
    CAPTURE(cols);
    const Problem p(1, cols, 3, 11, 4);
    auto quantized = p.windows;
    for (auto& x : quantized) {
      for (float& v : x) v = std::nearbyint(v);
    }
    std::vector<Moments> results;
    for (int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      MomentAccumulator sums(cols, true);
      for (size_t i = 0; i < 4; ++i) sums.add(pool, p.windows[i], quantized[i]);
      results.push_back(std::move(sums).finish());
    }
    Plain h(cols, cols), m(cols, cols);
    double size = 0;
    for (size_t i = 0; i < 4; ++i) {
      for (size_t t = 0; t < 11; ++t) {
        for (size_t a = 0; a < size_t(cols); ++a) {
          const double xa = double(quantized[i][t * size_t(cols) + a]);
          const double da = double(p.windows[i][t * size_t(cols) + a]) - xa;
          for (size_t b = 0; b < size_t(cols); ++b) {
            const double xb = double(quantized[i][t * size_t(cols) + b]);
            h(int64_t(a), int64_t(b)) += 2.0 / 4 * xa * xb;
            m(int64_t(a), int64_t(b)) += 2.0 / 4 * da * xb;
          }
        }
      }
    }
    for (double v : h.v) size = std::max(size, std::fabs(v));
    double h_error = 0, m_error = 0;
    bool same = true;
    for (size_t i = 0; i < h.v.size(); ++i) {
      h_error = std::max(h_error, std::fabs(double(results[0].hessian.values()[i]) - h.v[i]));
      m_error = std::max(m_error, std::fabs(double(results[0].cross.values()[i]) - m.v[i]));
      for (const Moments& r : results) {
        same &= r.hessian.values()[i] == results[0].hessian.values()[i];
        same &= r.cross.values()[i] == results[0].cross.values()[i];
      }
    }
    CHECK(h_error < 1e-6 * size);
    CHECK(m_error < 1e-6 * size);
    CHECK(same);
  }
}

TEST_CASE("an input that is not finite is named by token and channel") {
  ThreadPool pool(1);
  MomentAccumulator sums(4, false);
  std::vector<float> x(12, 1.0f);
  sums.add(pool, x);
  x[6] = std::numeric_limits<float>::infinity();
  try {
    sums.add(pool, x);
    FAIL("was taken");
  } catch (const Error& e) {
    CHECK(e.parts().where == "window 1, token 1, channel 2");
  }
  CHECK_THROWS_AS(sums.add(pool, std::vector<float>(12), x), Error);
  CHECK_THROWS_AS(sums.add(pool, std::vector<float>(12), std::vector<float>(8)), Error);
  CHECK_THROWS_AS(sums.add(pool, std::vector<float>(7)), Error);
  CHECK_THROWS_AS(sums.add(pool, std::vector<float>()), Error);
  CHECK_THROWS_AS(MomentAccumulator(4, false).finish(), Error);
  CHECK_THROWS_AS(MomentAccumulator(0, false), Error);
}

TEST_CASE("the factor's U^T U is the inverse of the damped Hessian, in the order of visit") {
  ThreadPool pool(2);
  for (int64_t cols : {1, 5, 64, 200}) {
    CAPTURE(cols);
    const Problem p(1, cols, 5, 400, 1);
    const Moments m = p.moments(pool);
    const auto score = diagonal(m.hessian);
    std::vector<uint32_t> weak;
    if (cols > 4) weak = {1, 4};
    for (bool by_score : {false, true}) {
      const auto order =
          column_order(cols, weak, by_score ? std::span(score) : std::span<const float>());
      const InverseFactor f = invert(pool, m.hessian, order);
      CHECK(f.damp == 0.01);
      CHECK(inverse_error(f, test::damped(m.hessian, 0.01)) < 1e-3);
      for (int64_t i = 0; i < cols; ++i) {
        for (int64_t j = 0; j < i; ++j) CHECK_EQ(f.upper(i, j), 0.0f);
      }
    }
  }
}

TEST_CASE("columns are visited in their order or by score, the weak ones last") {
  const std::vector<float> score = {3, 9, 1, 9, 5};
  const std::vector<uint32_t> weak = {1};
  const auto natural = column_order(5, weak, {});
  CHECK(natural.order == std::vector<uint32_t>{0, 2, 3, 4, 1});
  CHECK(natural.natural);
  CHECK(natural.live() == 4);
  const auto sorted = column_order(5, weak, score);
  CHECK(sorted.order == std::vector<uint32_t>{3, 4, 0, 2, 1});
  CHECK(!sorted.natural);
  CHECK(column_order(5, {}, score).order == std::vector<uint32_t>{1, 3, 4, 0, 2});
  CHECK_THROWS_AS(column_order(5, std::vector<uint32_t>{5}, {}), Error);
  CHECK_THROWS_AS(column_order(5, std::vector<uint32_t>{2, 2}, {}), Error);
  CHECK_THROWS_AS(column_order(5, {}, std::vector<float>(4)), Error);
  CHECK_THROWS_AS(column_order(2, {}, std::vector<float>{1, NAN}), Error);
}

TEST_CASE("a channel that is never active counts as 1, in the damping's mean too") {
  ThreadPool pool(1);
  Matrix h(3, 3);
  h(0, 0) = 4;
  h(2, 2) = 7;
  const InverseFactor f = invert(pool, h, column_order(3, {}, {}), {.damp = 0.5});
  CHECK(f.dead == std::vector<uint32_t>{1});
  const double added = 0.5 * (4 + 1 + 7) / 3;
  for (auto [i, value] : {std::pair{0, 4.0}, {1, 1.0}, {2, 7.0}}) {
    CHECK(double(f.upper(i, i)) == doctest::Approx(1 / std::sqrt(value + added)).epsilon(1e-6));
  }
}

TEST_CASE("where Cholesky fails the damping grows, and says so") {
  ThreadPool pool(1);
  MomentAccumulator sums(40, false);  // one token: a Hessian of rank 1
  const Problem p(1, 40, 9, 1, 1);
  sums.add(pool, p.windows[0]);
  const Moments m = std::move(sums).finish();
  std::vector<Damping::Failure> failures;
  const Damping damping = {.damp = 0, .on_failure = [&](const auto& f) { failures.push_back(f); }};
  const InverseFactor f = invert(pool, m.hessian, column_order(40, {}, {}), damping);
  REQUIRE(!failures.empty());
  CHECK(failures[0].damp == 0);
  CHECK(failures[0].next == 1e-4);
  CHECK(failures[0].column < 40);
  CHECK(f.damp == failures.back().next);
  CHECK(inverse_error(f, test::damped(m.hessian, f.damp)) < 0.05);
}

TEST_CASE("the pivot that failed is named by its original column") {
  ThreadPool pool(1);
  Matrix h(4, 4);
  for (int64_t i = 0; i < 4; ++i) h(i, i) = i == 2 ? -1.0f : 10.0f;
  std::vector<uint32_t> columns;
  const Damping damping = {.retries = 3,
                           .on_failure = [&](const auto& f) { columns.push_back(f.column); }};
  const std::vector<float> score = {1, 2, 3, 4};
  const InverseFactor f = invert(pool, h, column_order(4, {}, score), damping);
  CHECK(columns == std::vector<uint32_t>{2, 2});  // 0.01 and 0.1 of 7.25 are less than 1
  CHECK(f.damp == doctest::Approx(1.0));
}

TEST_CASE("a Hessian that no damping mends is refused, as is one that is not finite") {
  ThreadPool pool(1);
  Matrix h(4, 4);
  for (int64_t i = 0; i < 4; ++i) h(i, i) = -1;
  CHECK_THROWS_AS(invert(pool, h, column_order(4, {}, {})), Error);
  h(1, 1) = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(invert(pool, h, column_order(4, {}, {})), Error);
  CHECK_THROWS_AS(invert(pool, Matrix(4, 4), column_order(3, {}, {})), Error);
  CHECK_THROWS_AS(Matrix(2, 2, std::vector<float>(3)), Error);
}

TEST_CASE("the relative output error is that of the outputs") {
  ThreadPool pool(2);
  const Problem p(70, 20, 4);
  Matrix q = p.w;
  for (float& v : q.values()) v += 0.01f * std::sin(1000 * v);
  double error = 0, whole = 0;
  for (const auto& x : p.windows) {
    for (size_t t = 0; t < x.size() / 20; ++t) {
      for (int64_t r = 0; r < 70; ++r) {
        double y = 0, d = 0;
        for (size_t k = 0; k < 20; ++k) {
          const double xk = double(x[t * 20 + k]);
          y += double(p.w.row(r)[k]) * xk;
          d += (double(p.w.row(r)[k]) - double(q.row(r)[k])) * xk;
        }
        whole += y * y;
        error += d * d;
      }
    }
  }
  const Moments m = p.moments(pool);
  CHECK(relative_output_error(pool, p.w, q, m.hessian) ==
        doctest::Approx(std::sqrt(error / whole)).epsilon(1e-4));
  CHECK(relative_output_error(pool, p.w, p.w, m.hessian) == 0);
  CHECK(relative_output_error(pool, Matrix(2, 20), Matrix(2, 20), m.hessian) == 0);
  CHECK(relative_weight_error(p.w, Matrix(70, 20)) == doctest::Approx(1));
}

}  // namespace oq::calibrate
