#include "tools/calibrate/learn/compensation.h"

#include <algorithm>

#include "tools/calibrate/learn/vector_math.h"

namespace oq::calibrate {

Compensation::Compensation(int64_t out, int64_t in)
    : a(size_t(out)), b(size_t(in), 1.0f), d_a(a.size()), d_b(b.size()), compensated(out, in) {}

void Compensation::forward(ThreadPool& pool, const Matrix& w) {
  pool.parallel_for(w.rows(), 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float* from = w.row(r).data();
      float* to = compensated.row(r).data();
      for (int64_t k = 0; k < w.cols(); ++k) to[k] = from[k] + a[size_t(r)] * b[size_t(k)];
    }
  });
}

void Compensation::backward(const Matrix& gradient) {
  std::fill(d_b.begin(), d_b.end(), 0.0f);
  for (int64_t r = 0; r < gradient.rows(); ++r) {
    const float* g = gradient.row(r).data();
    d_a[size_t(r)] = lane_sum(gradient.cols(), [&](int64_t k) { return g[k] * b[size_t(k)]; });
    for (size_t k = 0; k < d_b.size(); ++k) d_b[k] += g[k] * a[size_t(r)];
  }
}

}  // namespace oq::calibrate
