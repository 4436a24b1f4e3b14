#pragma once

#include <functional>
#include <memory>
#include <string>

#include "runtime/decoder.h"

namespace oq::tool {

/// What --backend, --threads and --quiet say of where a decoder runs.
struct BackendChoice {
  std::string name = "auto";
  int threads = 0;  ///< of the CPU; 0: one per usable core
  bool quiet = false;
  /// CudaOptions::random: `cuda` makes these weights itself.
  std::function<float(const TensorInfo&)> random = {};
};

/// A decoder on that backend. `auto` takes CUDA where this build has it and the device can run this
/// file with these options, and says so; else the CPU, and one notice says why. What is wrong with
/// the file is an error either way. Throws oq::Error where what was named cannot be had.
Decoder make_decoder(std::shared_ptr<const File> file, const BackendChoice& choice,
                     const Decoder::Options& options);

}  // namespace oq::tool
