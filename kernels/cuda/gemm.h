#pragma once

#include <memory>

#include "kernels/cuda/stream.h"

namespace oq::cuda {

/// c[i][j] = sum over k of a[i][k] b[j][k]; f16 in, fp32 sums. `ld*` are elements from row to row.
struct GemmArgs {
  int m, n, k;
  const uint16_t* a;
  int lda;
  const uint16_t* b;
  int ldb;
  float* c;
  int ldc;
};

/// A library's matrix product: cuBLAS (gemm.cpp), or plain loops on the emulator
/// (tests/simt/gemm.cpp). One to a stream, which must outlive it; failures throw DeviceError.
class Gemm {
 public:
  explicit Gemm(Stream& stream);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  /// Enqueues.
  void run(const GemmArgs& args);

 private:
  struct Handle;  ///< the library's
  std::unique_ptr<Handle> handle_;
};

}  // namespace oq::cuda
