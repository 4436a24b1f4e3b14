#pragma once

#include <memory>
#include <string>

#include "runtime/backend/backend.h"
#if defined(OQ_HAVE_CUDA)
#include "runtime/backend/cuda/cuda_backend.h"
#endif

namespace oq::tool {

/// The backend that --backend names. `auto` takes CUDA where this build has it and a device can be
/// used, else the CPU. Throws oq::Error where `name` cannot be had.
inline std::unique_ptr<Backend> make_backend(const std::string& name, int threads) {
#if defined(OQ_HAVE_CUDA)
  if (name == "cuda" || (name == "auto" && cuda_missing().empty())) {
    return with_place("--backend " + name, [] { return make_cuda_backend(); });
  }
#else
  if (name == "cuda") {
    throw Error({.what = "this build has no CUDA backend",
                 .where = "--backend cuda",
                 .hint = "use --backend cpu"});
  }
#endif
  return make_cpu_backend(threads);
}

}  // namespace oq::tool
