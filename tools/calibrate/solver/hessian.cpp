#include "tools/calibrate/solver/hessian.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "format/error.h"

namespace oq::calibrate {
namespace {

/// P^T H P with `damp` times the mean of the diagonal on it, dead channels counting as 1.
Matrix permuted_and_damped(const Matrix& h, const std::vector<uint32_t>& order,
                           const std::vector<uint32_t>& dead, double damp) {
  const auto n = int64_t(order.size());
  double trace = double(dead.size());
  for (int64_t i = 0; i < n; ++i) trace += double(h(i, i));
  const auto added = float(damp * trace / double(n));
  Matrix out(n, n);
  for (int64_t i = 0; i < n; ++i) {
    const auto from = h.row(order[size_t(i)]);
    const auto to = out.row(i);
    for (int64_t j = 0; j < n; ++j) to[size_t(j)] = from[order[size_t(j)]];
    if (to[size_t(i)] == 0) to[size_t(i)] = 1;
    to[size_t(i)] += added;
  }
  return out;
}

/// The sum of a_ij b_ij, in double.
double inner(const Matrix& a, const Matrix& b) {
  double sum = 0;
  for (int64_t i = 0; i < a.rows(); ++i) {
    for (int64_t j = 0; j < a.cols(); ++j) sum += double(a(i, j)) * double(b(i, j));
  }
  return sum;
}

Matrix difference(const Matrix& a, const Matrix& b) {
  Matrix d = a;
  for (size_t i = 0; i < d.values().size(); ++i) d.values()[i] -= b.values()[i];
  return d;
}

}  // namespace

MomentAccumulator::MomentAccumulator(int64_t channels, bool with_cross) : channels_(channels) {
  if (channels <= 0) {
    throw Error({.what = "a linear without inputs", .found = std::to_string(channels)});
  }
  sums_.hessian = Matrix(channels, channels);
  if (with_cross) sums_.cross = Matrix(channels, channels);
}

int64_t MomentAccumulator::tokens_of(std::span<const float> x) const {
  if (x.empty() || int64_t(x.size()) % channels_ != 0) {
    throw Error({.what = "a calibration window of the wrong size",
                 .expected = fmt::format("a multiple of {} values", channels_),
                 .found = std::to_string(x.size())});
  }
  const auto bad = std::find_if_not(x.begin(), x.end(), [](float v) { return std::isfinite(v); });
  if (bad != x.end()) {
    const int64_t at = bad - x.begin();
    throw Error({.what = "a linear's input is not finite",
                 .where = fmt::format("window {}, token {}, channel {}", sums_.windows,
                                      at / channels_, at % channels_),
                 .found = std::to_string(*bad),
                 .hint = "the model overflows on this text: calibrate from an f32 or bf16 file"});
  }
  return int64_t(x.size()) / channels_;
}

void MomentAccumulator::add(ThreadPool& pool, std::span<const float> x) { add(pool, x, x); }

void MomentAccumulator::add(ThreadPool& pool, std::span<const float> x,
                            std::span<const float> x_quantized) {
  const int64_t tokens = tokens_of(x);  // first: a bad input spoils more than its own codes
  if (x_quantized.size() != x.size()) {
    throw Error({.what = "inputs and their quantized form differ in size",
                 .expected = std::to_string(x.size()),
                 .found = std::to_string(x_quantized.size())});
  }
  if (x_quantized.data() != x.data()) tokens_of(x_quantized);
  add_gram(pool, x_quantized.data(), tokens, sums_.hessian);
  if (!sums_.cross.empty()) {
    difference_.resize(x.size());
    std::transform(x.begin(), x.end(), x_quantized.begin(), difference_.begin(), std::minus<>());
    add_product(pool, difference_.data(), x_quantized.data(), tokens, sums_.cross);
  }
  ++sums_.windows;
}

Moments MomentAccumulator::finish() && {
  if (sums_.windows == 0) throw Error({.what = "no calibration window was seen"});
  const float factor = 2.0f / float(sums_.windows);
  mirror_lower(sums_.hessian, factor);
  for (float& v : sums_.cross.values()) v *= factor;
  return std::move(sums_);
}

std::vector<float> diagonal(const Matrix& h) {
  std::vector<float> d(static_cast<size_t>(h.cols()));
  for (int64_t i = 0; i < h.cols(); ++i) d[size_t(i)] = h(i, i);
  return d;
}

ColumnOrder column_order(int64_t columns, std::span<const uint32_t> weak,
                         std::span<const float> score) {
  std::vector<bool> is_weak(static_cast<size_t>(columns));
  for (uint32_t k : weak) {
    if (k >= columns || is_weak[k]) {
      throw Error({.what = "weak columns are to be distinct columns",
                   .expected = fmt::format("below {}", columns),
                   .found = std::to_string(k)});
    }
    is_weak[k] = true;
  }
  if (!score.empty() &&
      (int64_t(score.size()) != columns ||
       std::any_of(score.begin(), score.end(), [](float s) { return std::isnan(s); }))) {
    throw Error({.what = "columns cannot be ordered by this score",
                 .expected = fmt::format("{} numbers", columns),
                 .found = fmt::format("{}, or a NaN", score.size())});
  }
  ColumnOrder result;
  result.weak = uint32_t(weak.size());
  for (uint32_t k = 0; k < columns; ++k) {
    if (!is_weak[k]) result.order.push_back(k);
  }
  if (!score.empty()) {
    std::stable_sort(result.order.begin(), result.order.end(),
                     [&](uint32_t a, uint32_t b) { return score[a] > score[b]; });
  }
  result.natural = std::is_sorted(result.order.begin(), result.order.end());
  result.order.insert(result.order.end(), weak.begin(), weak.end());
  return result;
}

InverseFactor invert(ThreadPool& pool, const Matrix& hessian, ColumnOrder order,
                     const Damping& damping) {
  const int64_t n = hessian.cols();
  if (hessian.rows() != n || n != int64_t(order.order.size()) || n == 0) {
    throw Error({.what = "Hessian does not fit the columns",
                 .expected = fmt::format("{0} x {0}", order.order.size()),
                 .found = fmt::format("{} x {}", hessian.rows(), n)});
  }
  check_finite(hessian, "the Hessian");
  InverseFactor factor;
  factor.columns = std::move(order);
  for (int64_t i = 0; i < n; ++i) {
    if (hessian(i, i) == 0) factor.dead.push_back(uint32_t(i));
  }
  double damp = damping.damp;
  for (int attempt = 0;; ++attempt) {
    factor.upper = {};  // before the next one is made
    factor.upper = permuted_and_damped(hessian, factor.columns.order, factor.dead, damp);
    const int64_t failed = inverse_factor(pool, factor.upper);
    if (failed < 0) break;
    const uint32_t column = factor.columns.order[size_t(failed)];
    if (attempt >= damping.retries) {
      throw Error({.what = "the Hessian is not positive definite, whatever the damping",
                   .where = fmt::format("column {}", column),
                   .found = fmt::format("damp {} failed", damp),
                   .hint = "calibrate with more or longer windows"});
    }
    const double next = std::max(10 * damp, 1e-4);
    if (damping.on_failure) damping.on_failure({damp, column, next});
    damp = next;
  }
  factor.damp = damp;
  return factor;
}

double relative_output_error(ThreadPool& pool, const Matrix& w, const Matrix& q,
                             const Matrix& hessian) {
  const auto energy = [&](const Matrix& m) {
    Matrix product(m.rows(), m.cols());
    multiply(pool, 1, m, hessian, false, 0, product);
    return std::max(0.0, inner(product, m));
  };
  const double whole = energy(w);
  return whole > 0 ? std::sqrt(energy(difference(w, q)) / whole) : 0;
}

double relative_weight_error(const Matrix& w, const Matrix& q) {
  const Matrix d = difference(w, q);
  const double whole = inner(w, w);
  return whole > 0 ? std::sqrt(inner(d, d) / whole) : 0;
}

}  // namespace oq::calibrate
