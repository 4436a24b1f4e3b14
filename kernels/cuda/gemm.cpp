/// kernels/cuda/gemm.h by cuBLAS.

#include "kernels/cuda/gemm.h"

#include <cublas_v2.h>

#include "format/error.h"

namespace oq::cuda {
namespace {

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError({.what = what,
                     .where = "cuBLAS",
                     .found = cublasGetStatusString(status),
                     .hint = "use --backend cpu"});
}

cublasHandle_t handle_of(const Gemm& g) { return static_cast<cublasHandle_t>(g.handle()); }

}  // namespace

Gemm::Gemm(Stream& stream) {
  cublasHandle_t handle = nullptr;
  check(cublasCreate(&handle), "cuBLAS cannot be used");
  handle_ = handle;
  check(cublasSetStream(handle, static_cast<cudaStream_t>(stream.handle())),
        "cuBLAS does not take a stream");
}
Gemm::~Gemm() { cublasDestroy(handle_of(*this)); }

/// Columns first, as cuBLAS counts: c transposed, n x m, is b (a transposed).
void Gemm::run(const GemmArgs& g) {
  const float one = 1.0f, zero = 0.0f;
  check(cublasGemmEx(handle_of(*this), CUBLAS_OP_T, CUBLAS_OP_N, g.n, g.m, g.k, &one, g.b,
                     CUDA_R_16F, g.ldb, g.a, CUDA_R_16F, g.lda, &zero, g.c, CUDA_R_32F, g.ldc,
                     CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "a matrix product could not be started");
}

}  // namespace oq::cuda
