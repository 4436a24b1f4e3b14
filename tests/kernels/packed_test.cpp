/// Packed linears of every instruction set against the reference.

#include <string>

#include "kernels/cpu/kernels.h"
#include "kernels/reference/ops.h"
#include "tests/kernels/compare.h"
#include "tests/kernels/packed_cases.h"

using namespace oq;
using namespace oq::test;

namespace {

/// What the caller of a packed kernel prepares: weak columns taken out, rows padded with zeros.
struct Activations {
  std::vector<float> live, weak;
  cpu::Int8Rows int8;
  std::vector<float> int8_values;  ///< what the codes stand for, [tokens][cols], weak included

  Activations(const cpu::Kernels& k, const PackedView& w, const std::vector<float>& x,
              int64_t tokens) {
    const auto cols = int64_t(w.layout().cols), padded = int64_t(w.layout().padded_cols);
    const auto indices = w.weak_indices();
    live.assign(size_t(tokens * padded), 0.0f);
    int8.resize(tokens, padded);
    int8_values = x;
    for (int64_t m = 0; m < tokens; ++m) {
      float* row = live.data() + m * padded;
      std::copy_n(x.data() + m * cols, cols, row);
      for (uint32_t i : indices) {
        weak.push_back(row[i]);
        row[i] = 0;
      }
      k.quantize_row(row, cols, int8.row_codes(m), int8.row_scales(m), int8.row_sums(m),
                     int8.blocks);
      for (int64_t c = 0; c < cols; ++c) {
        if (std::find(indices.begin(), indices.end(), uint32_t(c)) != indices.end()) continue;
        int8_values[size_t(m * cols + c)] =
            float(int8.row_codes(m)[c]) * int8.row_scales(m)[c / cpu::kActCols];
      }
    }
  }
};

struct PackedResult {
  std::vector<float> exact, int8, exact_truth, int8_truth;
};

PackedResult run_packed(const cpu::Kernels& k, const PackedView& w, const std::vector<float>& x,
                        int64_t tokens, int64_t split) {
  const auto& l = w.layout();
  const auto rows = int64_t(l.rows), cols = int64_t(l.cols), panels = int64_t(l.panels);
  const Activations a(k, w, x, tokens);
  PackedResult r;
  const auto size = size_t(tokens * rows);
  r.exact.assign(size, NAN);
  r.int8.assign(size, NAN);
  r.exact_truth.resize(size);
  r.int8_truth.resize(size);
  const cpu::Rows live{a.live.data(), int64_t(l.padded_cols)};
  for (const auto& [from, to] : {std::pair(int64_t(0), split), std::pair(split, panels)}) {
    k.packed_exact(w, live, a.weak.data(), tokens, from, to, {r.exact.data(), rows});
    k.packed_int8(w, a.int8, a.weak.data(), tokens, from, to, {r.int8.data(), rows});
  }
  const std::vector<float> dense = reference::dequantize(w);
  reference::linear(dense, {}, x, tokens, rows, cols, r.exact_truth);
  reference::linear(dense, {}, a.int8_values, tokens, rows, cols, r.int8_truth);
  return r;
}

}  // namespace

TEST_CASE("packed linears equal the reference at every width, shape and zero mode") {
  for (const cpu::Kernels* k : cpu::available_kernels()) {
    CAPTURE(std::string(k->name));
    for (const PackedCase& c : packed_cases()) {
      for (int64_t tokens : {1, 2, 5, 11}) {
        Rng rng(uint32_t(c.cols * 31 + c.packing.bits + tokens));
        const PackedBuilder b = random_packed(rng, c);
        const auto x = random_floats(rng, size_t(tokens) * c.cols);
        const PackedResult r = run_packed(*k, b.view(), x, tokens, int64_t(b.layout().panels / 2));
        CAPTURE(int(c.packing.bits));
        CAPTURE(c.packing.five_levels);
        CAPTURE(c.cols);
        CAPTURE(tokens);
        // fp32 sums of up to 576 products of magnitude up to 10 * 255 * 0.1
        const double atol = 2e-5 * std::sqrt(double(c.cols)) * c.packing.max_code() * 0.1;
        CHECK_CLOSE(r.exact, r.exact_truth, atol, 1e-5, 1e-11);
        CHECK_CLOSE(r.int8, r.int8_truth, atol, 1e-5, 1e-11);
      }
    }
  }
}

TEST_CASE("a token's result does not depend on the tokens beside it, bit for bit") {
  for (const cpu::Kernels* k : cpu::available_kernels()) {
    for (const PackedCase& c : packed_cases()) {
      Rng rng(5);
      const PackedBuilder b = random_packed(rng, c);
      const auto x = random_floats(rng, 11 * c.cols);
      const PackedResult all = run_packed(*k, b.view(), x, 11, 0);
      for (int64_t m = 0; m < 11; ++m) {
        const std::vector<float> one(x.begin() + m * int64_t(c.cols),
                                     x.begin() + (m + 1) * int64_t(c.cols));
        const PackedResult alone = run_packed(*k, b.view(), one, 1, 0);
        const auto from = size_t(m) * c.rows;
        REQUIRE(std::equal(alone.exact.begin(), alone.exact.end(), all.exact.begin() + long(from)));
        REQUIRE(std::equal(alone.int8.begin(), alone.int8.end(), all.int8.begin() + long(from)));
      }
    }
  }
}

TEST_CASE("instruction sets that sum integers alike give the same bits") {
  const auto available = cpu::available_kernels();
  for (size_t i = 2; i < available.size();
       ++i) {  // 0 is scalar, which adds floats in another order
    for (const PackedCase& c : packed_cases()) {
      Rng rng(6);
      const PackedBuilder w = random_packed(rng, c);
      const auto x = random_floats(rng, 9 * c.cols);
      CHECK(run_packed(*available[1], w.view(), x, 9, 0).int8 ==
            run_packed(*available[i], w.view(), x, 9, 0).int8);
    }
  }
}

// Where codes are multiplied as signed bytes, code 0 of 8 bits is -128.
TEST_CASE("int16 sums hold at the largest and smallest codes and activations") {
  for (const cpu::Kernels* k : cpu::available_kernels()) {
    for (const PackedCase& c : packed_cases()) {
      for (Codes codes : {Codes::largest, Codes::zero}) {
        for (float sign : {1.0f, -1.0f}) {
          Rng rng(9);
          const PackedBuilder b = random_packed(rng, c, codes);
          const std::vector<float> x(c.cols, sign * 3.0f);  // every code is +-127
          const PackedResult r = run_packed(*k, b.view(), x, 1, 0);
          const double size = 3.0 * double(c.cols) * c.packing.max_code() * 0.1;
          CHECK_CLOSE(r.int8, r.int8_truth, 3e-7 * size, 1e-5, 1e-10);
        }
      }
    }
  }
}

namespace {

/// Activations on one grid per token, in the form of packed_grid, and what they stand for.
struct OnGrid {
  cpu::GridRows rows;
  std::vector<float> weak, values;  ///< [tokens][cols], weak included
  std::vector<double> live_sums;

  OnGrid(const cpu::Kernels& k, const PackedView& w, std::vector<float> x, int64_t tokens,
         const ActivationGrid& grid)
      : values(x) {
    const auto cols = int64_t(w.layout().cols), panels = int64_t(w.layout().panels);
    const auto indices = w.weak_indices();
    std::vector<bool> live(size_t(cols), true);
    for (uint32_t i : indices) live[i] = false;
    rows.resize(tokens, int64_t(w.layout().padded_cols));
    for (int64_t m = 0; m < tokens; ++m) {
      float* row = x.data() + m * cols;
      for (uint32_t i : indices) {
        weak.push_back(row[i]);
        row[i] = grid.scale * grid.shift();
      }
      for (int64_t c = 0; c < cols; ++c) {
        if (!live[size_t(c)]) continue;
        values[size_t(m * cols + c)] = grid.scale * (grid.code(row[c]) - grid.zero);
      }
      rows.scales[size_t(m)] = grid.scale;
      rows.shifts[size_t(m)] = grid.shift();
      k.quantize_row_to(grid, row, cols, rows.row_codes(m), rows.row_sums(m), rows.blocks);
    }
    const auto dense = reference::dequantize(w);
    live_sums.assign(size_t(panels * kPanelRows), 0.0);
    for (size_t r = 0; r < dense.size() / size_t(cols); ++r) {
      double sum = 0;
      for (size_t c = 0; c < size_t(cols); ++c) {
        sum += live[c] ? double(dense[r * size_t(cols) + c]) : 0.0;
      }
      live_sums[r] = sum;
    }
  }
};

std::vector<float> run_grid(const cpu::Kernels& k, const PackedView& w, const OnGrid& a,
                            int64_t tokens, int64_t split) {
  const auto rows = int64_t(w.layout().rows), panels = int64_t(w.layout().panels);
  std::vector<float> y(size_t(tokens * rows), NAN);
  for (const auto& [from, to] : {std::pair(int64_t(0), split), std::pair(split, panels)}) {
    k.packed_grid(w, a.rows, a.live_sums.data(), a.weak.data(), tokens, from, to, {y.data(), rows});
  }
  return y;
}

}  // namespace

TEST_CASE("linears of activations on grids equal the reference, and each token alone") {
  for (const cpu::Kernels* k : cpu::available_kernels()) {
    CAPTURE(std::string(k->name));
    for (const PackedCase& c : packed_cases()) {
      Rng rng(uint32_t(c.cols * 31 + c.packing.bits));
      const PackedBuilder b = random_packed(rng, c);
      const auto x = random_floats(rng, 11 * c.cols);
      for (const int bits : {2, 4, 7, 8}) {
        CAPTURE(bits);
        const auto grid = ActivationGrid::of(-2.0f, 3.5f, bits);
        const OnGrid a(*k, b.view(), x, 11, grid);
        const auto y = run_grid(*k, b.view(), a, 11, int64_t(b.layout().panels / 2));
        std::vector<float> truth(y.size());
        reference::linear(reference::dequantize(b.view()), {}, a.values, 11, int64_t(c.rows),
                          int64_t(c.cols), truth);
        const double atol = 2e-6 * std::sqrt(double(c.cols)) * c.packing.max_code() * 0.1;
        CHECK_CLOSE(y, truth, atol, 1e-5, 1e-11);
        for (int64_t m = 0; m < 11; ++m) {
          const std::vector<float> one(x.begin() + m * int64_t(c.cols),
                                       x.begin() + (m + 1) * int64_t(c.cols));
          const OnGrid single(*k, b.view(), one, 1, grid);
          const auto alone = run_grid(*k, b.view(), single, 1, 0);
          REQUIRE(std::equal(alone.begin(), alone.end(), y.begin() + m * int64_t(c.rows)));
        }
      }
    }
  }
}

TEST_CASE("a range far to one side of 0 costs no precision: sums that cancel are integers") {
  // As SmolLM2's down projections meet them, a range per tensor: an outlier makes every other value
  // a code or two from the zero point, and all codes nearly the largest.
  for (const cpu::Kernels* k : cpu::available_kernels()) {
    CAPTURE(std::string(k->name));
    for (const uint8_t bits : {3, 4, 8}) {
      for (const uint32_t group : {0u, 128u}) {
        Rng rng(bits);
        const Packing packing{.bits = bits,
                              .zero_mode = ZeroMode::constant,
                              .zero = uint8_t(1 << (bits - 1)),  // rows that sum to little
                              .group = group};
        const PackedCase c{16, 4096, packing};
        const PackedBuilder b = random_packed(rng, c);
        auto x = random_floats(rng, c.cols, 0.0f, 12.0f);
        x[77] = -2600.0f;
        const auto grid = ActivationGrid::of(-2600.0f, 60.0f, 8);
        const OnGrid a(*k, b.view(), x, 1, grid);
        const auto y = run_grid(*k, b.view(), a, 1, 0);
        std::vector<float> truth(y.size());
        reference::linear(reference::dequantize(b.view()), {}, a.values, 1, 16, 4096, truth);
        double most = 0;
        for (float v : truth) most = std::max(most, std::fabs(double(v)));
        CHECK_CLOSE(y, truth, 1e-6 * most, 0, 1e-13);  // its inputs are rounded to fp32
      }
    }
  }
}

TEST_CASE("int16 sums hold at the outermost codes and the lowest grid code, -128") {
  for (const cpu::Kernels* k : cpu::available_kernels()) {
    for (const PackedCase& c : packed_cases()) {
      for (Codes codes : {Codes::largest, Codes::zero}) {
        Rng rng(10);
        const PackedBuilder b = random_packed(rng, c, codes);
        const ActivationGrid grid{.scale = 0.5f, .zero = 0, .bits = 8};
        OnGrid a(*k, b.view(), std::vector<float>(c.cols, 0.0f), 1, grid);  // code 0, stored -128
        // Without its shift, x is -64.
        a.rows.shifts[0] = 0;
        for (float& v : a.values) v = -64.0f;
        for (uint32_t i : b.view().weak_indices()) a.values[i] = 0;
        const auto y = run_grid(*k, b.view(), a, 1, 0);
        std::vector<float> truth(c.rows);
        reference::linear(reference::dequantize(b.view()), {}, a.values, 1, int64_t(c.rows),
                          int64_t(c.cols), truth);
        CHECK_CLOSE(y, truth, 3e-7 * 64.0 * double(c.cols) * c.packing.max_code() * 0.1, 1e-5,
                    1e-10);
      }
    }
  }
}

TEST_CASE("a flipped code, scale or zero point is noticed") {
  for (const cpu::Kernels* k : cpu::available_kernels()) {
    Rng rng(3);
    const PackedCase c{16, 160, {.bits = 3, .group = 64}};
    const PackedBuilder b = random_packed(rng, c);
    const auto x = random_floats(rng, 160, 0.5f, 0.3f);
    const PackedResult good = run_packed(*k, b.view(), x, 1, 0);
    for (uint64_t at : {uint64_t(7), b.layout().scales_offset + 6, b.layout().zeros_offset + 1}) {
      std::vector<std::byte> bytes(b.bytes().begin(), b.bytes().end());
      bytes[at] ^= std::byte(at == 7 ? 1 : 4);
      const PackedResult bad = run_packed(*k, PackedView(b.layout(), bytes.data()), x, 1, 0);
      CHECK(compare(bad.exact, good.exact_truth, 1e-4, 1e-5).close == false);
      CHECK(compare(bad.int8, good.int8_truth, 1e-4, 1e-5).close == false);
    }
  }
}
