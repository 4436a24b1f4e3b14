/// kernels/cuda/gemm.h for the emulator: plain loops.

#include "kernels/cuda/gemm.h"

#include <vector>

#include "format/half.h"
#include "tests/simt/device.h"
#include "tests/simt/device_state.h"

namespace oq::cuda {
namespace {

std::vector<float> floats(const uint16_t* from, int n) {
  std::vector<float> to(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) to[size_t(i)] = to_float(f16{from[i]});
  return to;
}

void multiply(const GemmArgs& g) {
  std::vector<std::vector<float>> a;
  for (int i = 0; i < g.m; ++i) a.push_back(floats(g.a + ptrdiff_t(i) * g.lda, g.k));
  for (int j = 0; j < g.n; ++j) {
    const std::vector<float> b = floats(g.b + ptrdiff_t(j) * g.ldb, g.k);
    for (int i = 0; i < g.m; ++i) {
      float sum = 0;
      for (int k = 0; k < g.k; ++k) sum += a[size_t(i)][size_t(k)] * b[size_t(k)];
      g.c[ptrdiff_t(i) * g.ldc + j] = sum;
    }
  }
}

}  // namespace

struct Gemm::Handle {
  Stream& stream;
};

Gemm::Gemm(Stream& stream) : handle_(new Handle{stream}) {
  if (!simt::device_state().has_gemm) {
    throw DeviceError({.what = "cuBLAS cannot be loaded", .where = "emulator"});
  }
}
Gemm::~Gemm() = default;

void Gemm::run(const GemmArgs& args) {
  enqueue(handle_->stream, [args] { multiply(args); });
}

}  // namespace oq::cuda
