#pragma once

#include <memory>
#include <string>

#include "runtime/backend/backend.h"

namespace oq {

/// The first CUDA device. Weights are uploaded and rearranged as they are prepared; between `begin`
/// and `read_logits` nothing waits. Packed weights meet activations of 22 bits, exact or not.
/// Throws oq::Error where no device can be used.
std::unique_ptr<Backend> make_cuda_backend();

/// Why make_cuda_backend would throw, in a few words; empty where it would not.
std::string cuda_missing();

}  // namespace oq
