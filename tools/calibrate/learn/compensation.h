#pragma once

#include <vector>

#include "kernels/cpu/thread_pool.h"
#include "tools/calibrate/solver/linalg.h"

namespace oq::calibrate {

/// A learned rank-1 compensation of a linear's weights before they are quantized (ABQ, Zeng et
/// al. 2024): W + a b^T, with a [out] and b [in]. It leaves nothing to do at run time.
struct Compensation {
  std::vector<float> a, b, d_a, d_b;
  Matrix compensated;  ///< of the last `forward`, [out][in]

  /// None.
  Compensation() = default;
  /// a of zeros, b of ones: nothing is added, and a has a gradient.
  Compensation(int64_t out, int64_t in);

  bool empty() const { return a.empty(); }
  /// compensated = w + a b^T. PRECOND of both: not empty.
  void forward(ThreadPool& pool, const Matrix& w);
  /// From the gradient of `compensated`: d_a = G b, d_b = G^T a. That of w is G itself.
  void backward(const Matrix& gradient);
};

}  // namespace oq::calibrate
