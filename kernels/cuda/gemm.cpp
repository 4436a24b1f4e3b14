/// kernels/cuda/gemm.h by cuBLAS, which is loaded when the first product wants it: a process that
/// links it pays 70 MB of private memory for its relocations, on a CPU too.

#include "kernels/cuda/gemm.h"

#include <string>

#include <cublas_v2.h>
#include <dlfcn.h>

#include "format/error.h"

namespace oq::cuda {
namespace {

// Spelled out, for the header overloads the name.
using GemmEx = cublasStatus_t (*)(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int,
                                  int, const void*, const void*, cudaDataType, int, const void*,
                                  cudaDataType, int, const void*, void*, cudaDataType, int,
                                  cublasComputeType_t, cublasGemmAlgo_t);

/// What is used of the library. Never unloaded.
struct Library {
  decltype(&cublasCreate_v2) create;
  decltype(&cublasDestroy_v2) destroy;
  decltype(&cublasSetStream_v2) set_stream;
  GemmEx gemm;
  decltype(&cublasGetStatusString) text;

  /// Throws DeviceError where it cannot be had.
  static const Library& get() {
    static const Library library = load();
    return library;
  }

 private:
  static Error missing() {
    const char* why = dlerror();
    return DeviceError({.what = "cuBLAS cannot be loaded",
                        .where = "cuda backend",
                        .expected = "libcublas.so." + std::to_string(CUBLAS_VER_MAJOR),
                        .found = why == nullptr ? "another library of that name" : why,
                        .hint = "put the CUDA toolkit's libraries on LD_LIBRARY_PATH, or use "
                                "--exact, which does without, or --backend cpu"});
  }

  template <class Function>
  static void find(void* library, const char* name, Function& f) {
    f = reinterpret_cast<Function>(dlsym(library, name));
    if (f == nullptr) throw missing();
  }

  static Library load() {
    const std::string name = "libcublas.so." + std::to_string(CUBLAS_VER_MAJOR);
    void* opened = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (opened == nullptr) {  // the toolkit that this was built with
      opened = dlopen((OQ_CUDA_LIBRARIES "/" + name).c_str(), RTLD_NOW | RTLD_LOCAL);
    }
    if (opened == nullptr) throw missing();
    Library l{};
    find(opened, "cublasCreate_v2", l.create);
    find(opened, "cublasDestroy_v2", l.destroy);
    find(opened, "cublasSetStream_v2", l.set_stream);
    find(opened, "cublasGemmEx", l.gemm);
    find(opened, "cublasGetStatusString", l.text);
    return l;
  }
};

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError({.what = what,
                     .where = "cuBLAS",
                     .found = Library::get().text(status),
                     .hint = "use --backend cpu"});
}

cublasHandle_t handle_of(const Gemm& g) { return static_cast<cublasHandle_t>(g.handle()); }

}  // namespace

Gemm::Gemm(Stream& stream) {
  cublasHandle_t handle = nullptr;
  check(Library::get().create(&handle), "cuBLAS cannot be used");
  handle_ = handle;
  check(Library::get().set_stream(handle, static_cast<cudaStream_t>(stream.handle())),
        "cuBLAS does not take a stream");
}
Gemm::~Gemm() { Library::get().destroy(handle_of(*this)); }

/// Columns first, as cuBLAS counts: c transposed, n x m, is b (a transposed).
void Gemm::run(const GemmArgs& g) {
  const float one = 1.0f, zero = 0.0f;
  check(Library::get().gemm(handle_of(*this), CUBLAS_OP_T, CUBLAS_OP_N, g.n, g.m, g.k, &one, g.b,
                            CUDA_R_16F, g.ldb, g.a, CUDA_R_16F, g.lda, &zero, g.c, CUDA_R_32F,
                            g.ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "a matrix product could not be started");
}

}  // namespace oq::cuda
