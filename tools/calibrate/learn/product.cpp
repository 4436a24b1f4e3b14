#include "tools/calibrate/learn/product.h"

#include <algorithm>

#include <cblas.h>

#include "tools/calibrate/solver/linalg.h"

namespace oq::calibrate {

void multiply(const Product& p) {
  if (p.m == 0 || p.n == 0) return;
  cblas_sgemm(CblasRowMajor, p.a.transposed ? CblasTrans : CblasNoTrans,
              p.b.transposed ? CblasTrans : CblasNoTrans, int(p.m), int(p.n), int(p.k), 1.0f,
              p.a.data, int(p.a.stride), p.b.data, int(p.b.stride), p.add ? 1.0f : 0.0f, p.c,
              int(p.c_stride));
}

void multiply(ThreadPool& pool, const Product& p) {
  const BlasThreads single(1);
  // Every piece packs B once more, so pieces are large.
  const int64_t slab = std::clamp<int64_t>((p.m / 4 + 7) / 8 * 8, 64, 256);
  pool.parallel_for((p.m + slab - 1) / slab, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t s = begin; s < end; ++s) {
      Product part = p;
      part.m = std::min(slab, p.m - s * slab);
      part.a.data += s * slab * (p.a.transposed ? 1 : p.a.stride);
      part.c += s * slab * p.c_stride;
      multiply(part);
    }
  });
}

}  // namespace oq::calibrate
