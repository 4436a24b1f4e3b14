#include "bench/gpu/cublas.h"

#include <algorithm>
#include <vector>

#include <cublasLt.h>
#include <cublas_v2.h>

#include "bench/gpu/timing.h"
#include "format/error.h"
#include "kernels/cuda/kernels.h"

namespace oq {
namespace {

constexpr size_t kWorkspace = 32 << 20;
constexpr int kProposals = 8;
constexpr int kHotLaunches = 64;
constexpr int kSmallestBatch = 16;  ///< that int8 kernels take, if they take no fewer

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  // A product that cuBLAS refuses says nothing of the device: other rows go on.
  throw Error({.what = what, .where = "cuBLAS", .found = cublasGetStatusString(status)});
}

cudaStream_t stream_of(const cuda::Stream& s) { return static_cast<cudaStream_t>(s.handle()); }

/// What goes in and what comes out.
struct Types {
  cudaDataType in, out, scale;
  cublasComputeType_t compute;
  size_t in_bytes, out_bytes;
};
constexpr Types kFp16 = {CUDA_R_16F, CUDA_R_16F, CUDA_R_32F, CUBLAS_COMPUTE_32F, 2, 2};
constexpr Types kInt8 = {CUDA_R_8I, CUDA_R_32I, CUDA_R_32I, CUBLAS_COMPUTE_32I, 1, 4};

/// The buffers of a product, as many weights as make every one of them cold.
struct Buffers {
  size_t bytes;
  int count, launches;
  cuda::Memory w, x, y;

  Buffers(cuda::Stream& stream, const Cublas::Shape& s, const Types& t, Cublas::Weights weights)
      : bytes((size_t(s.rows) * size_t(s.cols) * t.in_bytes + 255) / 256 * 256),
        count(weights == Cublas::Weights::hot ? 1 : std::clamp(int(kColdBytes / bytes), 2, 64)),
        launches(std::max(count, weights == Cublas::Weights::hot ? kHotLaunches : 1)),
        w(bytes * size_t(count)),
        x(size_t(s.tokens) * size_t(s.cols) * t.in_bytes),
        y(size_t(s.tokens) * size_t(s.rows) * t.out_bytes) {
    fill(stream, w, t);  // with random numbers: zeros take less power, and so less time
    fill(stream, x, t);
  }
  static void fill(cuda::Stream& stream, const cuda::Memory& memory, const Types& t) {
    cuda::fill(stream, {.kind = t.in_bytes == 2 ? cuda::Fill::halves : cuda::Fill::bits,
                        .to = memory.as<uint32_t>(),
                        .words = int64_t(memory.bytes() / 4),
                        .seed = 3,
                        .spread = 1});
  }
  const void* weight(int i) const { return w.data() + bytes * size_t(i % count); }
};

/// cublasLt's descriptors of one product.
struct LtProduct {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;

  LtProduct(const Cublas::Shape& s, const Types& t) {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    check(cublasLtMatmulDescCreate(&product, t.compute, t.scale), "no descriptor");
    check(cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                         sizeof(transposed)),
          "no descriptor");
    const auto rows = uint64_t(s.rows), cols = uint64_t(s.cols), tokens = uint64_t(s.tokens);
    check(cublasLtMatrixLayoutCreate(&a, t.in, cols, rows, s.cols), "no layout");
    check(cublasLtMatrixLayoutCreate(&b, t.in, cols, tokens, s.cols), "no layout");
    check(cublasLtMatrixLayoutCreate(&c, t.out, rows, tokens, s.rows), "no layout");
  }
  ~LtProduct() {
    cublasLtMatrixLayoutDestroy(c);
    cublasLtMatrixLayoutDestroy(b);
    cublasLtMatrixLayoutDestroy(a);
    cublasLtMatmulDescDestroy(product);
  }
  LtProduct(const LtProduct&) = delete;
  LtProduct& operator=(const LtProduct&) = delete;
};

}  // namespace

struct Cublas::Handles {
  cuda::Stream& stream;
  cublasHandle_t blas = nullptr;
  cublasLtHandle_t lt = nullptr;
  cuda::Memory workspace{kWorkspace};

  std::vector<cublasLtMatmulHeuristicResult_t> proposals(const LtProduct& p) const {
    cublasLtMatmulPreference_t preference = nullptr;
    check(cublasLtMatmulPreferenceCreate(&preference), "no preference");
    const size_t most = kWorkspace;
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                         &most, sizeof(most));
    std::vector<cublasLtMatmulHeuristicResult_t> list(kProposals);
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        lt, p.product, p.a, p.b, p.c, p.c, preference, kProposals, list.data(), &found);
    cublasLtMatmulPreferenceDestroy(preference);
    list.resize(status == CUBLAS_STATUS_SUCCESS ? size_t(found) : 0);
    return list;
  }

  /// The fastest proposal's time, or 0. One that cannot be run, or not in a graph, is none.
  double best_of_lt(const Shape& s, const Types& t, const Buffers& m) {
    const LtProduct p(s, t);
    const float one_f = 1, zero_f = 0;
    const int32_t one_i = 1, zero_i = 0;
    const bool floats = t.scale == CUDA_R_32F;
    const void* one = floats ? static_cast<const void*>(&one_f) : &one_i;
    const void* zero = floats ? static_cast<const void*>(&zero_f) : &zero_i;
    double best = 0;
    for (const auto& proposal : proposals(p)) {
      const auto run = [&](int i) {
        return cublasLtMatmul(lt, p.product, one, m.weight(i), p.a, m.x.data(), p.b, zero,
                              m.y.data(), p.c, m.y.data(), p.c, &proposal.algo, workspace.data(),
                              kWorkspace, stream_of(stream));
      };
      if (run(0) != CUBLAS_STATUS_SUCCESS) continue;
      bool ran = true;
      const double time = time_graph(stream, m.launches,
                                     [&](int i) { ran = run(i) == CUBLAS_STATUS_SUCCESS && ran; });
      if (ran && (best == 0 || time < best)) best = time;
    }
    return best;
  }
};

Cublas::Cublas(cuda::Stream& stream) : handles_(new Handles{stream}) {
  check(cublasCreate(&handles_->blas), "cannot be started");
  check(cublasLtCreate(&handles_->lt), "cannot be started");
  check(cublasSetStream(handles_->blas, stream_of(stream)), "takes no stream");
  check(cublasSetWorkspace(handles_->blas, handles_->workspace.data(), kWorkspace),
        "takes no workspace");
}
Cublas::~Cublas() {
  cublasLtDestroy(handles_->lt);
  cublasDestroy(handles_->blas);
}

double Cublas::fp16(const Shape& s, Weights weights) {
  Handles& h = *handles_;
  const Buffers m(h.stream, s, kFp16, weights);
  const float one = 1, zero = 0;
  const double plain = time_graph(h.stream, m.launches, [&](int i) {
    check(cublasGemmEx(h.blas, CUBLAS_OP_T, CUBLAS_OP_N, s.rows, s.tokens, s.cols, &one,
                       m.weight(i), kFp16.in, s.cols, m.x.data(), kFp16.in, s.cols, &zero,
                       m.y.data(), kFp16.out, s.rows, kFp16.compute, CUBLAS_GEMM_DEFAULT),
          "a product failed");
  });
  const double lt = h.best_of_lt(s, kFp16, m);
  return lt == 0 ? plain : std::min(plain, lt);
}

double Cublas::int8(const Shape& s, Weights weights) {
  Handles& h = *handles_;
  const double time = h.best_of_lt(s, kInt8, Buffers(h.stream, s, kInt8, weights));
  if (time > 0 || s.tokens >= kSmallestBatch) return time;
  const Shape padded{s.rows, s.cols, kSmallestBatch};
  return h.best_of_lt(padded, kInt8, Buffers(h.stream, padded, kInt8, weights));
}

}  // namespace oq
