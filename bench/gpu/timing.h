#pragma once

#include <cstddef>
#include <functional>

#include "kernels/cuda/stream.h"

namespace oq {

/// Bytes that lie between two uses of a buffer where it is to be cold: ten times
/// an H100's second-level cache.
constexpr size_t kColdBytes = size_t(512) << 20;

/// Seconds that one of `launches` calls takes when all of them run as one graph: the median of
/// several replays, on the device's clock. `launch(i)` enqueues the i-th; with another buffer for
/// each, kColdBytes together, every one of them is cold.
double time_graph(cuda::Stream& stream, int launches, const std::function<void(int)>& launch);

/// The same without a graph, for what waits for no launch.
double time_stream(cuda::Stream& stream, int launches, const std::function<void(int)>& launch);

}  // namespace oq
