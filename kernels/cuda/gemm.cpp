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
  static DeviceError missing(const std::string& why) {
    return DeviceError({.what = "cuBLAS cannot be loaded",
                        .where = "cuda backend",
                        .expected = "libcublas.so." + std::to_string(CUBLAS_VER_MAJOR),
                        .found = why,
                        .hint = "put the CUDA toolkit's libraries on LD_LIBRARY_PATH"});
  }

  template <class Function>
  static void find(void* library, const char* name, Function& f) {
    f = reinterpret_cast<Function>(dlsym(library, name));
    if (f == nullptr) throw missing(std::string("another library, without ") + name);
  }

  static Library load() {
    const std::string name = "libcublas.so." + std::to_string(CUBLAS_VER_MAJOR);
    // Where the loader looks, the toolkit that this was built with, and where toolkits lie.
    void* opened = nullptr;
    std::string why;
    for (const char* folder : {"", OQ_CUDA_LIBRARIES "/", "/usr/local/cuda/lib64/"}) {
      opened = dlopen((folder + name).c_str(), RTLD_NOW | RTLD_LOCAL);
      if (opened != nullptr) break;
      why += (why.empty() ? "" : "; ") + std::string(dlerror());
    }
    if (opened == nullptr) throw missing(why);
    Library l{};
    find(opened, "cublasCreate_v2", l.create);
    find(opened, "cublasDestroy_v2", l.destroy);
    find(opened, "cublasSetStream_v2", l.set_stream);
    find(opened, "cublasGemmEx", l.gemm);
    find(opened, "cublasGetStatusString", l.text);
    return l;
  }
};

void check(const Library& library, cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError({.what = what,
                     .where = "cuBLAS",
                     .found = library.text(status),
                     .hint = "use --backend cpu"});
}

}  // namespace

struct Gemm::Handle {
  const Library& library = Library::get();
  cublasHandle_t blas = nullptr;

  Handle() { check(library, library.create(&blas), "cuBLAS cannot be used"); }
  ~Handle() { library.destroy(blas); }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
};

Gemm::Gemm(Stream& stream) : handle_(std::make_unique<Handle>()) {
  const Library& library = handle_->library;
  check(library, library.set_stream(handle_->blas, static_cast<cudaStream_t>(stream.handle())),
        "cuBLAS does not take a stream");
}
Gemm::~Gemm() = default;

/// Columns first, as cuBLAS counts: c transposed, n x m, is b (a transposed).
void Gemm::run(const GemmArgs& g) {
  const float one = 1.0f, zero = 0.0f;
  const Library& library = handle_->library;
  check(library,
        library.gemm(handle_->blas, CUBLAS_OP_T, CUBLAS_OP_N, g.n, g.m, g.k, &one, g.b, CUDA_R_16F,
                     g.ldb, g.a, CUDA_R_16F, g.lda, &zero, g.c, CUDA_R_32F, g.ldc,
                     CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "a matrix product could not be started");
}

}  // namespace oq::cuda
