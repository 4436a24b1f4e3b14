#pragma once

#include <cstddef>
#include <memory>

#include "bench/probe.h"

namespace oq {

/// Of the first CUDA device: every SM streams its part of `bytes` in loads of 16 bytes, on the
/// device's own clock. Takes half of what is free where that is less. Throws oq::Error where
/// so little is left that caches would take part, and in a build without CUDA.
std::unique_ptr<Probe> make_device_probe(size_t bytes = size_t(4) << 30);

}  // namespace oq
