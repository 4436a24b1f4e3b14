#include "tools/calibrate/solver/awrq.h"

#include <fmt/format.h>

#include "format/error.h"

namespace oq::calibrate {
Matrix reformulate(ThreadPool& pool, const Matrix& w, const Matrix& cross,
                   const InverseFactor& factor) {
  const auto& order = factor.columns.order;
  const auto cols = int64_t(order.size());
  if (w.cols() != cols || cross.rows() != cols || cross.cols() != cols) {
    throw Error({.what = "weights or cross moment do not fit the Hessian",
                 .expected = fmt::format("{} columns", cols),
                 .found = fmt::format("{} and {} x {}", w.cols(), cross.rows(), cross.cols())});
  }
  check_finite(cross, "the cross moment");
  Matrix result = w;
  for (int64_t r = 0; r < w.rows(); ++r) {
    for (uint32_t k : factor.dead) result(r, k) = 0;
  }
  // G = W M, then G H^-1 = (G U^T) U in the factor's order.
  Matrix g(w.rows(), cols), placed(w.rows(), cols);
  multiply(pool, 1, result, cross, false, 0, g);
  for (int64_t r = 0; r < w.rows(); ++r) {
    for (int64_t p = 0; p < cols; ++p) placed(r, p) = g(r, order[size_t(p)]);
  }
  multiply_upper(pool, placed, factor.upper, true);
  multiply_upper(pool, placed, factor.upper, false);
  for (int64_t r = 0; r < w.rows(); ++r) {
    for (int64_t p = 0; p < cols; ++p) result(r, order[size_t(p)]) += placed(r, p);
    for (uint32_t k : factor.dead) result(r, k) = 0;
  }
  check_finite(result, "the reformulated weight");
  return result;
}

}  // namespace oq::calibrate
