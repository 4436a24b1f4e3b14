#include "tools/calibrate/solver/owq.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "format/error.h"

namespace oq::calibrate {
namespace {

/// Half to even, then up to the next even number, within [0, cols].
uint32_t even_count(double n, int64_t cols) {
  const auto rounded = int64_t(std::nearbyint(std::min(n, double(cols))));
  return uint32_t(std::min(rounded + rounded % 2, cols));
}

/// The number of chosen types; checks what both formulas ask for.
double chosen_types(std::span<const LinearType> types, double bits, double target) {
  if (!(target >= bits && target < bits + 1 && target < 16)) {
    throw Error({.what = "target bits do not fit the code width",
                 .expected = fmt::format("{} or more, below {}", bits, std::min(bits + 1, 16.0)),
                 .found = fmt::format("{}", target),
                 .hint = "3.01 with 3-bit codes leaves 0.01 bits for weak columns"});
  }
  const auto chosen =
      std::count_if(types.begin(), types.end(), [](const LinearType& t) { return t.chosen; });
  if (chosen == 0) throw Error({.what = "no linear may have weak columns"});
  for (const LinearType& t : types) {
    if (t.rows <= 0 || t.cols <= 0 || t.count <= 0) {
      throw Error({.what = "a linear without weights", .where = t.name});
    }
  }
  return double(chosen);
}

double weights_of(std::span<const LinearType> types) {
  return std::accumulate(types.begin(), types.end(), 0.0, [](double sum, const LinearType& t) {
    return sum + double(t.rows) * double(t.cols) * double(t.count);
  });
}

}  // namespace

std::vector<float> sensitivity(ThreadPool& pool, const Matrix& w,
                               std::span<const float> hessian_diagonal,
                               const GridOptions& options) {
  if (int64_t(hessian_diagonal.size()) != w.cols()) {
    throw Error({.what = "weights do not fit the Hessian",
                 .expected = fmt::format("{} columns", hessian_diagonal.size()),
                 .found = std::to_string(w.cols())});
  }
  check_finite(w, "the weight");
  const int64_t slab = slab_rows(w.rows()), slabs = (w.rows() + slab - 1) / slab;
  std::vector<std::vector<double>> sums(static_cast<size_t>(slabs));
  pool.parallel_for(slabs, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t s = begin; s < end; ++s) {
      auto& sum = sums[size_t(s)];
      sum.resize(size_t(w.cols()));
      for (int64_t r = s * slab; r < std::min(w.rows(), (s + 1) * slab); ++r) {
        const auto row = w.row(r);
        const Grid grid = fit_grid(row, options, options.group_steps);
        for (size_t k = 0; k < row.size(); ++k) {
          const float error = row[k] - grid.value(grid.code(row[k], options.packing.max_code()));
          sum[k] += double(error) * double(error);
        }
      }
    }
  });
  std::vector<float> result(hessian_diagonal.begin(), hessian_diagonal.end());
  for (size_t k = 0; k < result.size(); ++k) {
    double error = 0;
    for (const auto& sum : sums) error += sum[k];
    result[k] = float(double(result[k]) * error);
  }
  return result;
}

std::vector<uint32_t> largest(std::span<const float> score, uint32_t count) {
  if (std::any_of(score.begin(), score.end(), [](float s) { return std::isnan(s); })) {
    throw Error({.what = "the sensitivity of a column is not a number"});
  }
  std::vector<uint32_t> columns(score.size());
  std::iota(columns.begin(), columns.end(), 0u);
  const auto end = columns.begin() + std::min<ptrdiff_t>(count, std::ssize(columns));
  std::partial_sort(columns.begin(), end, columns.end(), [&](uint32_t a, uint32_t b) {
    return score[a] != score[b] ? score[a] > score[b] : a < b;
  });
  columns.erase(end, columns.end());
  std::sort(columns.begin(), columns.end());
  return columns;
}

std::vector<uint32_t> weak_counts(std::span<const LinearType> types, double bits, double target) {
  const double m = chosen_types(types, bits, target);
  const double share = (target - bits) / (16 - bits) * weights_of(types) / m;
  std::vector<uint32_t> counts;
  for (const LinearType& t : types) {
    counts.push_back(t.chosen ? even_count(share / double(t.count * t.rows), t.cols) : 0);
  }
  return counts;
}

std::vector<uint32_t> weak_counts_paper(std::span<const LinearType> types, double bits,
                                        double target) {
  const double m = chosen_types(types, bits, target);
  const double r = 12 / (16 - bits) * (target - bits) / m;
  std::vector<uint32_t> counts;
  for (const LinearType& t : types) {
    counts.push_back(t.chosen ? even_count(double(t.cols) * r * t.ratio, t.cols) : 0);
  }
  return counts;
}

double effective_bits(std::span<const LinearType> types, std::span<const uint32_t> counts,
                      double bits) {
  double weak = 0;
  for (size_t i = 0; i < types.size(); ++i) {
    weak += double(counts[i]) * double(types[i].rows) * double(types[i].count);
  }
  return bits + (16 - bits) * weak / weights_of(types);
}

}  // namespace oq::calibrate
