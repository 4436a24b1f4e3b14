#pragma once

#include <cstdint>

#include "kernels/cpu/thread_pool.h"

namespace oq::calibrate {

/// C = A B, or C += A B: A is [m][k], B is [k][n], C is [m][n] once they are transposed as asked.
/// Strides are floats from one stored row to the next. The one door to BLAS for everything that
/// learns: another implementation, on a device, would take its place here.
struct Product {
  struct Operand {
    const float* data;
    int64_t stride;
    bool transposed = false;  ///< it is stored as its own transpose
  };
  int64_t m, n, k;
  Operand a, b;
  float* c;
  int64_t c_stride;
  bool add = false;
};

/// On the calling thread. PRECOND: BLAS runs on one thread (BlasThreads).
void multiply(const Product& p);

/// Rows of C are shared out over the pool, in pieces by shape alone, so that the result does not
/// depend on the number of threads.
void multiply(ThreadPool& pool, const Product& p);

}  // namespace oq::calibrate
