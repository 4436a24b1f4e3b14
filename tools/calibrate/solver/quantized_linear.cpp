#include "tools/calibrate/solver/quantized_linear.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "format/error.h"

namespace oq::calibrate {
namespace {

f16 exact_f16(float x, const char* what, int64_t row) {
  const f16 half = to_f16(x);
  if (to_float(half) != x) {
    throw Error({.what = std::string(what) + " is not what a file stores",
                 .where = fmt::format("row {}", row),
                 .expected = "an f16",
                 .found = fmt::format("{}", x),
                 .hint = "fp32_scales is for tests of the solver"});
  }
  return half;
}

}  // namespace

QuantizedLinear::QuantizedLinear(int64_t rows, int64_t cols, Packing packing,
                                 std::span<const uint32_t> weak)
    : rows(rows), cols(cols), packing(packing), weak(weak.begin(), weak.end()) {
  this->packing.weak_columns = uint32_t(weak.size());
  const PackedLayout layout =
      PackedLayout::of(uint64_t(rows), uint64_t(cols), this->packing);  // checks
  const auto bad = std::adjacent_find(weak.begin(), weak.end(), std::greater_equal<>());
  if (bad != weak.end() || (!weak.empty() && int64_t(weak.back()) >= cols)) {
    throw Error({.what = "weak columns are to be ascending columns",
                 .expected = fmt::format("below {}", cols),
                 .found = std::to_string(bad != weak.end() ? *bad : weak.back())});
  }
  groups = int64_t(layout.groups);
  codes.resize(size_t(rows * cols));
  const int zero = packing.zero_mode == ZeroMode::constant ? packing.zero : 0;
  grids.assign(size_t(rows * groups), {1, zero});
  column_group.resize(size_t(cols));
  for (int64_t k = 0; k < cols; ++k) {
    column_group[size_t(k)] = uint32_t(uint64_t(k) / layout.group);
  }
  weak_weights.resize(size_t(rows) * weak.size());
}

void QuantizedLinear::dequantize_row(int64_t row, std::span<float> out) const {
  for (int64_t k = 0; k < cols; ++k) {
    const Grid& g = grid(row, column_group[size_t(k)]);
    out[size_t(k)] = g.value(codes[size_t(row * cols + k)]);
  }
  for (size_t i = 0; i < weak.size(); ++i) {
    out[weak[i]] = weak_weights[size_t(row) * weak.size() + i];
  }
}

Matrix QuantizedLinear::dequantize() const {
  Matrix m(rows, cols);
  for (int64_t r = 0; r < rows; ++r) dequantize_row(r, m.row(r));
  return m;
}

PackedBuilder QuantizedLinear::pack() const {
  PackedBuilder builder(uint64_t(rows), uint64_t(cols), packing);
  for (int64_t k = 0; k < cols; ++k) {
    if (column_group[size_t(k)] != uint64_t(k) / builder.layout().group) {
      throw Error({.what = "compacted groups cannot be stored",
                   .where = fmt::format("column {}", k),
                   .hint = "they are for tests of the solver"});
    }
  }
  builder.set_weak_indices(weak);
  for (int64_t r = 0; r < rows; ++r) {
    const auto row = uint64_t(r);
    builder.set_codes(row, std::span(codes).subspan(size_t(r * cols), size_t(cols)));
    for (int64_t g = 0; g < groups; ++g) {
      builder.set_scale(row, uint64_t(g), exact_f16(grid(r, g).scale, "a scale", r));
      builder.set_zero(row, uint64_t(g), grid(r, g).zero);
    }
    for (uint32_t i = 0; i < weak.size(); ++i) {
      const float x = weak_weights[size_t(r) * weak.size() + i];
      if (!packing.weak_bf16) exact_f16(x, "a weak weight", r);
      builder.set_weak_weight(row, i, x);
    }
  }
  return builder;
}

float weak_value(float x, const GridOptions& options, int64_t row, int64_t column) {
  if (options.fp32_scales) return x;
  const float kept = options.packing.weak_bf16 ? to_float(to_bf16(x)) : to_float(to_f16(x));
  if (!std::isfinite(kept)) {
    throw Error({.what = "a weak weight does not fit its 16 bits",
                 .where = fmt::format("row {}, column {}", row, column),
                 .found = fmt::format("{}", x),
                 .hint = "store weak columns in bf16"});
  }
  return kept;
}

QuantizedLinear round_to_nearest(ThreadPool& pool, const Matrix& w, const GridOptions& options,
                                 std::span<const uint32_t> weak) {
  QuantizedLinear out(w.rows(), w.cols(), options.packing, weak);
  std::vector<bool> is_weak(static_cast<size_t>(w.cols()));
  for (uint32_t k : weak) is_weak[k] = true;
  const int steps = out.groups == 1 ? options.row_steps : options.group_steps;
  const int max_code = options.packing.max_code();
  pool.parallel_for(w.rows(), 8, [&](int64_t begin, int64_t end, int) {
    std::vector<float> live;
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t k = 0; k < w.cols();) {
        const uint32_t group = out.column_group[size_t(k)];
        const int64_t first = k;
        live.clear();
        for (; k < w.cols() && out.column_group[size_t(k)] == group; ++k) {
          if (!is_weak[size_t(k)]) live.push_back(w(r, k));
        }
        if (live.empty()) continue;
        const Grid grid = out.grid(r, group) = fit_grid(live, options, steps);
        for (int64_t j = first; j < k; ++j) {
          if (!is_weak[size_t(j)]) {
            out.codes[size_t(r * w.cols() + j)] = grid.code(w(r, j), max_code);
          }
        }
      }
      for (size_t i = 0; i < weak.size(); ++i) {
        out.weak_weights[size_t(r) * weak.size() + i] =
            weak_value(w(r, weak[i]), options, r, weak[i]);
      }
    }
  });
  return out;
}

}  // namespace oq::calibrate
