#include "tools/calibrate/solver/owq.h"

#include <cmath>

#include <doctest/doctest.h>

#include "format/error.h"
#include "tests/calibrate/problem.h"
#include "tools/calibrate/solver/gptq.h"

namespace oq::calibrate {
namespace {

enum class Family { opt, llama, bloom, falcon };

/// Linear types of a block with model width d and MLP width f; kv: outputs of k and v.
std::vector<LinearType> block_of(Family family, int64_t d, int64_t f, int64_t kv) {
  const auto type = [](const char* name, int64_t rows, int64_t cols, double ratio) {
    return LinearType{.name = name, .rows = rows, .cols = cols, .ratio = ratio};
  };
  if (family == Family::opt) {
    return {type("q", d, d, 1), type("k", d, d, 1),     type("v", d, d, 1),
            type("o", d, d, 1), type("up", f, d, 0.25), type("down", d, f, 0.25)};
  }
  if (family == Family::llama) {
    return {type("q", d, d, 1),       type("k", kv, d, 1),     type("v", kv, d, 1),
            type("o", d, d, 1),       type("up", f, d, 0.375), type("gate", f, d, 0.375),
            type("down", d, f, 0.375)};
  }
  return {type("qkv", d + 2 * kv, d, 1), type("o", d, d, 1), type("up", f, d, 0.25),
          type("down", d, f, 0.25)};
}

/// Columns of q/k/v/o, of up (and gate), of down, and the bits per weight that they come to.
struct Row {
  uint32_t attention, up, down;
  double bits;
};

struct Model {
  const char* name;
  Family family;
  int64_t d, f, kv;
  Row at[3];  ///< for 3.01, 3.1 and 4.01 bits
};

// What the formula of OWQ's own code gives.
const Model kModels[] = {
    {"opt-125m",
     Family::opt,
     768,
     3072,
     768,
     {{2, 0, 2, 3.0141}, {12, 4, 12, 3.1072}, {2, 0, 2, 4.0130}}},
    {"opt-1.3b",
     Family::opt,
     2048,
     8192,
     2048,
     {{4, 2, 4, 3.0148}, {32, 8, 32, 3.1016}, {4, 2, 4, 4.0137}}},
    {"opt-2.7b",
     Family::opt,
     2560,
     10240,
     2560,
     {{4, 2, 4, 3.0118}, {40, 10, 40, 3.1016}, {4, 2, 4, 4.0109}}},
    {"opt-6.7b",
     Family::opt,
     4096,
     16384,
     4096,
     {{6, 2, 6, 3.0101}, {64, 16, 64, 3.1016}, {8, 2, 8, 4.0117}}},
    {"opt-13b",
     Family::opt,
     5120,
     20480,
     5120,
     {{8, 2, 8, 3.0102}, {80, 20, 80, 3.1016}, {10, 2, 10, 4.0113}}},
    {"opt-30b",
     Family::opt,
     7168,
     28672,
     7168,
     {{12, 4, 12, 3.0115}, {110, 28, 110, 3.1001}, {12, 4, 12, 4.0106}}},
    {"opt-66b",
     Family::opt,
     9216,
     36864,
     9216,
     {{14, 4, 14, 3.0101}, {142, 36, 142, 3.1004}, {16, 4, 16, 4.0104}}},
    {"llama-7b",
     Family::llama,
     4096,
     11008,
     4096,
     {{6, 2, 6, 3.0107}, {54, 20, 54, 3.0993}, {6, 2, 6, 4.0099}}},
    {"llama-13b",
     Family::llama,
     5120,
     13824,
     5120,
     {{8, 4, 8, 3.0129}, {68, 26, 68, 3.1008}, {8, 4, 8, 4.0119}}},
    {"llama-30b",
     Family::llama,
     6656,
     17920,
     6656,
     {{10, 4, 10, 3.0116}, {88, 34, 90, 3.1011}, {10, 4, 10, 4.0107}}},
    {"llama-65b",
     Family::llama,
     8192,
     22016,
     8192,
     {{12, 4, 12, 3.0107}, {108, 42, 110, 3.1010}, {12, 4, 12, 4.0099}}},
    {"llama2-70b",
     Family::llama,
     8192,
     28672,
     1024,
     {{12, 4, 14, 3.0086}, {108, 42, 142, 3.0845}, {12, 4, 16, 4.0082}}},
    {"llama3-8b",
     Family::llama,
     4096,
     14336,
     1024,
     {{6, 2, 8, 3.0090}, {54, 20, 72, 3.0847}, {6, 2, 8, 4.0083}}},
    {"tinyllama-1.1b",
     Family::llama,
     2048,
     5632,
     256,
     {{4, 2, 4, 3.0145}, {28, 10, 28, 3.0883}, {4, 2, 4, 4.0134}}},
    {"bloom-7b1",
     Family::bloom,
     4096,
     16384,
     4096,
     {{10, 2, 10, 3.0153}, {96, 24, 96, 3.1523}, {10, 4, 10, 4.0161}}},
    {"falcon-7b",
     Family::falcon,
     4544,
     18176,
     64,
     {{10, 4, 10, 3.0132}, {106, 26, 106, 3.1212}, {12, 4, 12, 4.0138}}},
};

constexpr double kBits[] = {3, 3, 4}, kTargets[] = {3.01, 3.1, 4.01};

}  // namespace

TEST_CASE("the paper's formula gives the paper's counts") {
  for (const Model& model : kModels) {
    const auto types = block_of(model.family, model.d, model.f, model.kv);
    for (size_t i = 0; i < 3; ++i) {
      CAPTURE(model.name);
      CAPTURE(kTargets[i]);
      const auto counts = weak_counts_paper(types, kBits[i], kTargets[i]);
      for (size_t t = 0; t < types.size(); ++t) {
        const std::string& name = types[t].name;
        const Row& row = model.at[i];
        const bool wide = name == "up" || name == "gate";
        CHECK(counts[t] == (wide ? row.up : name == "down" ? row.down : row.attention));
      }
      const double bits = effective_bits(types, counts, kBits[i]);
      CHECK(std::fabs(bits - model.at[i].bits) < 0.51e-4);  // the table has four places
    }
  }
}

TEST_CASE("equal storage comes to the target for any shape") {
  for (const Model& model : kModels) {
    const auto types = block_of(model.family, model.d, model.f, model.kv);
    double weights = 0, one_column = 0;
    for (const LinearType& t : types) {
      weights += double(t.rows * t.cols);
      one_column += double(t.rows);
    }
    for (size_t i = 0; i < 3; ++i) {
      CAPTURE(model.name);
      CAPTURE(kTargets[i]);
      const auto counts = weak_counts(types, kBits[i], kTargets[i]);
      for (uint32_t n : counts) CHECK(n % 2 == 0);
      // Rounding moves each count by at most half a column down or one and a half up.
      const double column = (16 - kBits[i]) * one_column / weights;
      const double bits = effective_bits(types, counts, kBits[i]);
      CHECK(bits >= kTargets[i] - 0.5 * column - 1e-9);
      CHECK(bits <= kTargets[i] + 1.5 * column + 1e-9);
      if (model.family == Family::opt) {  // 12 d^2 weights: the paper's case
        CHECK(counts == weak_counts_paper(types, kBits[i], kTargets[i]));
      }
    }
  }
}

TEST_CASE("counts: chosen types share the budget, experts share their type's") {
  auto types = block_of(Family::llama, 4096, 11008, 4096);
  const auto all = weak_counts(types, 3, 3.1);
  for (LinearType& t : types) t.chosen = t.name == "q" || t.name == "k";
  const auto two = weak_counts(types, 3, 3.1);
  CHECK(two[0] >= all[0] * 7 / 2 - 2);
  CHECK(two[0] == two[1]);
  for (size_t i = 2; i < two.size(); ++i) CHECK(two[i] == 0);
  CHECK(effective_bits(types, two, 3) == doctest::Approx(3.1).epsilon(1e-3));

  std::vector<LinearType> experts = {{.name = "o", .rows = 1024, .cols = 1024},
                                     {.name = "up", .rows = 1024, .cols = 1024, .count = 8}};
  const auto counts = weak_counts(experts, 3, 3.5);
  CHECK(counts[0] == doctest::Approx(8 * counts[1]).epsilon(0.05));
  CHECK(effective_bits(experts, counts, 3) == doctest::Approx(3.5).epsilon(0.01));
  experts[0].rows = 8;  // no more weak columns than columns
  CHECK(weak_counts(experts, 3, 3.9)[0] == 1024);
}

TEST_CASE("t = b means no weak columns; other targets are refused") {
  auto types = block_of(Family::llama, 576, 1536, 192);
  for (uint32_t n : weak_counts(types, 3, 3)) CHECK(n == 0);
  for (uint32_t n : weak_counts_paper(types, 3, 3)) CHECK(n == 0);
  for (double target : {2.9, 4.0, 5.0, double(NAN)}) {
    CHECK_THROWS_AS(weak_counts(types, 3, target), Error);
    CHECK_THROWS_AS(weak_counts_paper(types, 3, target), Error);
  }
  for (LinearType& t : types) t.chosen = false;
  CHECK_THROWS_AS(weak_counts(types, 3, 3.1), Error);
}

TEST_CASE("sensitivity is H_jj times the squared error of the column") {
  ThreadPool one(1), two(2);
  const test::Problem p(150, 40, 11);
  const auto diagonal_of_h = diagonal(p.moments(one).hessian);
  for (Tuning tuning : {Tuning::minmax, Tuning::mse}) {
    GridOptions o;
    o.packing.bits = 3;
    o.packing.group = 32;  // the sensitivity's grid is of whole rows all the same
    o.tuning = tuning;
    GridOptions rows = o;
    rows.packing.group = 0;
    rows.row_steps = rows.group_steps;
    const Matrix q = round_to_nearest(one, p.w, rows).dequantize();
    const auto found = sensitivity(one, p.w, diagonal_of_h, o);
    CHECK(found == sensitivity(two, p.w, diagonal_of_h, o));
    for (int64_t k = 0; k < 40; ++k) {
      double sum = 0;
      for (int64_t r = 0; r < 150; ++r) sum += std::pow(double(p.w(r, k)) - double(q(r, k)), 2);
      CHECK(double(found[size_t(k)]) ==
            doctest::Approx(sum * double(diagonal_of_h[size_t(k)])).epsilon(1e-5));
    }
  }
  CHECK_THROWS_AS(sensitivity(one, p.w, std::vector<float>(39), {}), Error);
}

TEST_CASE("the largest scores, ascending by column") {
  const std::vector<float> score = {1, 7, 3, 7, 0, 7};
  CHECK(largest(score, 0).empty());
  CHECK(largest(score, 2) == std::vector<uint32_t>{1, 3});
  CHECK(largest(score, 4) == std::vector<uint32_t>{1, 2, 3, 5});
  CHECK(largest(score, 100).size() == 6);
  CHECK_THROWS_AS(largest(std::vector<float>{0, NAN}, 1), Error);
}

TEST_CASE("a few weak columns buy more than their bits") {
  ThreadPool pool(2);
  const test::Problem p(64, 128, 21, 200, 2);
  const Moments m = p.moments(pool);
  GptqOptions o;
  o.grid.packing.bits = 3;
  o.grid.tuning = Tuning::mse;
  const auto score = sensitivity(pool, p.w, diagonal(m.hessian), o.grid);
  double last = 1e9;
  for (uint32_t n : {0u, 2u, 8u, 32u}) {
    const auto weak = largest(score, n);
    const InverseFactor f = invert(pool, m.hessian, column_order(128, weak, {}));
    const Matrix q = gptq(pool, p.w, f, o).linear.dequantize();
    const double error = relative_output_error(pool, p.w, q, m.hessian);
    CHECK(error < last);
    last = error;
  }
}

}  // namespace oq::calibrate
