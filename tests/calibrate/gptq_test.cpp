#include "tools/calibrate/solver/gptq.h"

#include <cmath>
#include <limits>
#include <numeric>

#include <doctest/doctest.h>

#include "format/error.h"
#include "tests/calibrate/problem.h"
#include "tools/calibrate/solver/owq.h"

namespace oq::calibrate {
namespace {

using test::Plain;
using test::Problem;

GptqOptions options_of(int bits, uint32_t group = 0, Tuning tuning = Tuning::minmax) {
  GptqOptions o;
  o.grid.packing.bits = uint8_t(bits);
  o.grid.packing.group = group;
  o.grid.tuning = tuning;
  return o;
}

/// GPTQ by definition, for one grid per row: round a column (or `joint` of them), give the columns
/// behind it the values that minimise the error, and go on. One small system per step.
Matrix by_definition(const Matrix& w, const Plain& h, const std::vector<uint32_t>& order,
                     int64_t live, const QuantizedLinear& grids, int64_t joint = 1) {
  const int64_t n = w.cols();
  Plain placed(n, n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) placed(i, j) = h(order[size_t(i)], order[size_t(j)]);
  }
  Matrix q(w.rows(), n);
  for (int64_t r = 0; r < w.rows(); ++r) {
    std::vector<double> start, now;
    for (uint32_t k : order) start.push_back(double(w(r, k)));
    now = start;
    for (int64_t p = 0; p < live; p += joint) {
      const int64_t end = std::min(live, p + joint);
      for (int64_t i = p; i < end; ++i) {
        const Grid& g = grids.grid(r, 0);
        now[size_t(i)] = double(g.value(g.code(float(now[size_t(i)]), grids.packing.max_code())));
      }
      if (end == n) break;
      // d_F = -H_FF^-1 H_FQ d_Q for the columns F that are still free.
      Plain pull(n - end, 1);
      for (int64_t f = end; f < n; ++f) {
        for (int64_t i = 0; i < end; ++i) {
          pull(f - end, 0) -= placed(f, i) * (start[size_t(i)] - now[size_t(i)]);
        }
      }
      const Plain d = placed.corner(end, n).inverse().times(pull);
      for (int64_t f = end; f < n; ++f) now[size_t(f)] = start[size_t(f)] - d(f - end, 0);
    }
    for (int64_t p = 0; p < n; ++p) q(r, order[size_t(p)]) = float(now[size_t(p)]);
  }
  return q;
}

double largest_difference(const Matrix& a, const Matrix& b) {
  double most = 0;
  for (size_t i = 0; i < a.values().size(); ++i) {
    most = std::max(most, std::fabs(double(a.values()[i]) - double(b.values()[i])));
  }
  return most;
}

}  // namespace

TEST_CASE("GPTQ is its definition: the best correction after every column") {
  ThreadPool pool(1);
  for (uint32_t seed = 0; seed < 12; ++seed) {
    CAPTURE(seed);
    const int64_t cols = 5 + 3 * seed;
    const Problem p(3, cols, seed);
    const Moments m = p.moments(pool);
    GptqOptions o = options_of(2 + int(seed % 3));
    o.grid.fp32_scales = true;
    o.joint = seed < 8 ? 1 : int(seed) - 5;
    std::vector<uint32_t> weak;
    if (seed % 2 == 1) weak = {1, 4};
    const auto score = diagonal(m.hessian);
    const auto order =
        column_order(cols, weak, seed % 3 == 2 ? std::span(score) : std::span<const float>());
    const InverseFactor factor = invert(pool, m.hessian, order);
    const GptqResult result = gptq(pool, p.w, factor, o);
    const Matrix found = result.linear.dequantize();
    const Plain h = test::damped(m.hessian, 0.01);
    const Matrix expected =
        by_definition(p.w, h, order.order, order.live(), result.linear, o.joint);
    CHECK(largest_difference(found, expected) < 2e-5);
    CHECK(result.loss == doctest::Approx(test::objective(p.w, found, h)).epsilon(1e-3));
  }
}

TEST_CASE("GPTQ is never worse than rounding to nearest") {
  ThreadPool pool(2);
  for (uint32_t seed = 0; seed < 8; ++seed) {
    for (int bits : {2, 3, 4, 8}) {
      for (uint32_t group : {0u, 32u}) {
        CAPTURE(seed);
        CAPTURE(bits);
        CAPTURE(group);
        const Problem p(20, 100, seed);
        const Moments m = p.moments(pool);
        GptqOptions o = options_of(bits, group, seed % 2 == 0 ? Tuning::minmax : Tuning::mse);
        const Plain h = test::damped(m.hessian, 0.01);
        const Matrix rounded = round_to_nearest(pool, p.w, o.grid).dequantize();
        for (bool act_order : {false, true}) {
          const auto score = act_order ? diagonal(m.hessian) : std::vector<float>{};
          const InverseFactor f = invert(pool, m.hessian, column_order(100, {}, score));
          const Matrix found = gptq(pool, p.w, f, o).linear.dequantize();
          CHECK(test::objective(p.w, found, h) < test::objective(p.w, rounded, h));
        }
      }
    }
  }
}

TEST_CASE("without correlation GPTQ is rounding to nearest") {
  ThreadPool pool(1);
  const Problem p(9, 70, 1);
  Matrix h(70, 70);
  for (int64_t i = 0; i < 70; ++i) h(i, i) = float(1 + i);
  const InverseFactor f = invert(pool, h, column_order(70, {}, {}));
  for (uint32_t group : {0u, 32u}) {
    const GptqOptions o = options_of(3, group);
    const auto found = gptq(pool, p.w, f, o).linear;
    const auto rounded = round_to_nearest(pool, p.w, o.grid);
    CHECK(found.codes == rounded.codes);
    CHECK(largest_difference(found.dequantize(), rounded.dequantize()) == 0);
  }
}

TEST_CASE("blocks change nothing but rounding, threads nothing at all") {
  ThreadPool one(1), three(3);
  const Problem p(200, 150, 2);
  const Moments m = p.moments(one);
  const InverseFactor f = invert(one, m.hessian, column_order(150, std::vector<uint32_t>{7}, {}));
  GptqOptions o = options_of(3);
  const GptqResult whole = gptq(one, p.w, f, o);
  const GptqResult threads = gptq(three, p.w, f, o);
  CHECK(whole.linear.codes == threads.linear.codes);
  CHECK(whole.linear.weak_weights == threads.linear.weak_weights);
  CHECK(whole.loss == threads.loss);
  for (int block : {1, 10, 32, 100, 1000}) {
    o.block = block;
    const GptqResult other = gptq(one, p.w, f, o);
    size_t equal = 0;
    for (size_t i = 0; i < other.linear.codes.size(); ++i) {
      equal += other.linear.codes[i] == whole.linear.codes[i] ? 1 : 0;
    }
    CHECK(equal > other.linear.codes.size() * 995 / 1000);
    CHECK(other.loss == doctest::Approx(whole.loss).epsilon(2e-3));
  }
}

TEST_CASE("weak columns take what makes the error least") {
  ThreadPool pool(1);
  const Problem p(6, 60, 8);
  const Moments m = p.moments(pool);
  const std::vector<uint32_t> weak = {3, 30, 59};
  const InverseFactor f = invert(pool, m.hessian, column_order(60, weak, {}));
  GptqOptions o = options_of(3);
  o.grid.fp32_scales = true;
  const Matrix found = gptq(pool, p.w, f, o).linear.dequantize();
  const Plain h = test::damped(m.hessian, 0.01);
  Plain d(p.w);
  for (size_t i = 0; i < d.v.size(); ++i) d.v[i] -= double(found.values()[i]);
  const Plain slope = d.times(h);  // of the objective: 0 where a weight is free
  double all = 0, at_weak = 0;
  for (int64_t r = 0; r < 6; ++r) {
    for (int64_t k = 0; k < 60; ++k) all = std::max(all, std::fabs(slope(r, k)));
    for (uint32_t k : weak) {
      at_weak = std::max(at_weak, std::fabs(slope(r, k)));
      CHECK(found(r, k) != p.w(r, k));
    }
  }
  CHECK(at_weak < 1e-4 * all);
}

TEST_CASE("weak columns stay out of the grids") {
  ThreadPool pool(1);
  Problem p(4, 64, 8);
  const std::vector<uint32_t> weak = {5, 40};
  for (int64_t r = 0; r < 4; ++r) p.w(r, 5) = p.w(r, 40) = 100;
  const Moments m = p.moments(pool);
  const InverseFactor f = invert(pool, m.hessian, column_order(64, weak, {}));
  for (uint32_t group : {0u, 32u}) {
    for (bool fixed : {false, true}) {
      GptqOptions o = options_of(4, group);
      o.static_groups = fixed;
      const auto linear = gptq(pool, p.w, f, o).linear;
      for (const Grid& g : linear.grids) CHECK(g.scale < 1);
      for (uint32_t k : weak) {
        for (int64_t r = 0; r < 4; ++r) CHECK_EQ(linear.codes[size_t(r * 64 + k)], 0);
      }
      for (const Grid& g : round_to_nearest(pool, p.w, o.grid, weak).grids) CHECK(g.scale < 1);
    }
  }
}

TEST_CASE("groups: static ones are those of the original weights, others of the corrected") {
  ThreadPool pool(1);
  const Problem p(10, 200, 3);
  const Moments m = p.moments(pool);
  GptqOptions o = options_of(3, 32);
  const auto rounded = round_to_nearest(pool, p.w, o.grid);
  const auto same_grids = [&](const QuantizedLinear& l, int64_t group) {
    for (int64_t r = 0; r < 10; ++r) {
      if (l.grid(r, group).scale != rounded.grid(r, group).scale) return false;
    }
    return true;
  };
  const InverseFactor f = invert(pool, m.hessian, column_order(200, {}, {}));
  const auto moving = gptq(pool, p.w, f, o).linear;
  for (int64_t g = 0; g < 4; ++g) CHECK(same_grids(moving, g));  // they begin in the first 128
  for (int64_t g = 4; g < 7; ++g) CHECK(!same_grids(moving, g));
  o.static_groups = true;
  const auto fixed = gptq(pool, p.w, f, o).linear;
  o.static_groups = false;  // an order by score is static all the same
  const auto ordered =
      gptq(pool, p.w, invert(pool, m.hessian, column_order(200, {}, diagonal(m.hessian))), o)
          .linear;
  for (int64_t g = 0; g < 7; ++g) {
    CHECK(same_grids(fixed, g));
    CHECK(same_grids(ordered, g));
  }
  CHECK(fixed.codes != ordered.codes);
  ordered.pack();
}

TEST_CASE("dead columns become 0 and disturb nobody") {
  ThreadPool pool(1);
  Problem p(5, 40, 6);
  for (auto& x : p.windows) {
    for (size_t t = 0; t < x.size(); t += 40) x[t + 11] = 0;
  }
  for (int64_t r = 0; r < 5; ++r) p.w(r, 11) = 50;  // would spoil the grids
  const Moments m = p.moments(pool);
  const InverseFactor f = invert(pool, m.hessian, column_order(40, {}, {}));
  CHECK(f.dead == std::vector<uint32_t>{11});
  const auto found = gptq(pool, p.w, f, options_of(4)).linear;
  for (int64_t r = 0; r < 5; ++r) {
    CHECK(found.dequantize()(r, 11) == 0);
    CHECK(found.grid(r, 0).scale < 1);
  }
}

TEST_CASE("what does not fit is refused") {
  ThreadPool pool(1);
  Problem p(5, 40, 6);
  const Moments m = p.moments(pool);
  const InverseFactor f = invert(pool, m.hessian, column_order(40, {}, {}));
  CHECK_THROWS_AS(gptq(pool, Matrix(5, 39), f, options_of(4)), Error);
  const Matrix other(4, 40);
  CHECK_THROWS_AS(gptq(pool, p.w, f, options_of(4), &other), Error);
  p.w(2, 3) = NAN;
  try {
    gptq(pool, p.w, f, options_of(4));
    FAIL("was taken");
  } catch (const Error& e) {
    CHECK(e.parts().where == "row 2, column 3");
  }
}

TEST_CASE("a weak weight that overflows its 16 bits is refused") {
  ThreadPool pool(1);
  Problem p(5, 40, 6);
  p.w(2, 3) = 1e5f;
  const Moments m = p.moments(pool);
  const InverseFactor f = invert(pool, m.hessian, column_order(40, std::vector<uint32_t>{3}, {}));
  GptqOptions o = options_of(4);
  CHECK_THROWS_AS(gptq(pool, p.w, f, o), Error);
  CHECK_THROWS_AS(round_to_nearest(pool, p.w, o.grid, std::vector<uint32_t>{3}), Error);
  o.grid.packing.weak_bf16 = true;
  CHECK(gptq(pool, p.w, f, o).linear.dequantize()(2, 3) == doctest::Approx(1e5).epsilon(0.01));
}

TEST_CASE("a file holds the solver's weights bit for bit") {
  ThreadPool pool(2);
  for (int64_t cols : {33, 100, 192}) {
    const Problem p(13, cols, uint32_t(cols));
    const Moments m = p.moments(pool);
    for (int bits = 2; bits <= 9; ++bits) {  // 9: five levels
      for (uint32_t group : {0u, 32u, 64u}) {
        for (int kind = 0; kind < 4; ++kind) {
          GptqOptions o = options_of(bits == 9 ? 2 : bits, group);
          Packing& packing = o.grid.packing;
          packing.five_levels = bits == 9;
          if (kind == 1) {
            packing.zero_mode = ZeroMode::constant;
            packing.zero = int16_t(packing.five_levels ? 2 : (1 << (packing.bits - 1)) - 1);
          }
          if (kind == 2) packing.zero_mode = ZeroMode::i16;
          packing.weak_bf16 = kind == 3;
          std::vector<uint32_t> weak;
          if (kind >= 2) weak = {0, 31, 32};
          const InverseFactor f = invert(pool, m.hessian, column_order(cols, weak, {}));
          for (const auto& linear :
               {gptq(pool, p.w, f, o).linear, round_to_nearest(pool, p.w, o.grid, weak)}) {
            const PackedBuilder built = linear.pack();
            const Matrix ours = linear.dequantize();
            std::vector<float> row(static_cast<size_t>(cols));
            bool equal = true;
            for (int64_t r = 0; r < 13; ++r) {
              built.view().dequantize_row(uint64_t(r), row);
              equal &= std::equal(row.begin(), row.end(), ours.row(r).begin());
            }
            CHECK(equal);
            CHECK(built.layout().packing.weak_columns == weak.size());
          }
        }
      }
    }
  }
}

TEST_CASE("what a file cannot hold is not packed") {
  ThreadPool pool(1);
  const Problem p(5, 70, 6);
  const Moments m = p.moments(pool);
  GptqOptions o = options_of(4);
  o.grid.fp32_scales = true;
  const std::vector<uint32_t> weak = {3};
  const InverseFactor f = invert(pool, m.hessian, column_order(70, weak, {}));
  CHECK_THROWS_AS(gptq(pool, p.w, f, o).linear.pack(), Error);
  o.grid.fp32_scales = false;
  gptq(pool, p.w, f, o).linear.pack();
  o.grid.packing.group = 32;
  o.compacted_groups = true;  // shifts the groups behind column 3
  CHECK_THROWS_AS(gptq(pool, p.w, f, o).linear.pack(), Error);
  CHECK_THROWS_AS(QuantizedLinear(2, 8, {}, std::vector<uint32_t>{8}), Error);
  CHECK_THROWS_AS(QuantizedLinear(2, 8, {}, std::vector<uint32_t>{3, 3}), Error);
}

}  // namespace oq::calibrate
