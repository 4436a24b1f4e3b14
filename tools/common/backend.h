#pragma once

#include <memory>
#include <string>

#include "runtime/backend/backend.h"

namespace oq::tool {

/// The backend that --backend names. `auto` takes the best that is usable here. Throws oq::Error
/// where this build has none of that name.
inline std::unique_ptr<Backend> make_backend(const std::string& name, int threads) {
  if (name == "cuda") {
    throw Error({.what = "this build has no CUDA backend",
                 .where = "--backend cuda",
                 .hint = "use --backend cpu"});
  }
  return make_cpu_backend(threads);
}

}  // namespace oq::tool
