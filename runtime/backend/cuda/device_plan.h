#pragma once

#include <cstdint>
#include <string>

#include "kernels/cuda/stream.h"
#include "runtime/backend/backend.h"

namespace oq {

/// What a decoder takes of the device's memory, in bytes, reckoned before any of it is taken.
/// Never less than what it then takes.
struct DevicePlan {
  uint64_t weights = 0;
  uint64_t kv = 0;
  uint64_t buffers = 0;  ///< activations, logits, scratch
  uint64_t staging = 0;  ///< a tensor on its way into tiles; given back when all are there

  /// Stays free for what the driver takes as it goes: modules, graphs, a library's workspace. A
  /// choice, not a measurement.
  static constexpr uint64_t kReserve = uint64_t(256) << 20;
  /// What cuBLAS takes when it is loaded, reckoned high.
  static constexpr uint64_t kLibrary = uint64_t(128) << 20;

  static DevicePlan of(const Plan& plan);

  uint64_t total() const { return weights + kv + buffers + staging; }
  /// "4.12 GB of device memory: 3.57 of weights, 0.54 of KV cache, 0.01 of buffers"
  std::string str() const;

  /// With so many bytes more.
  bool fits(const cuda::DeviceMemory& memory, uint64_t more = 0) const;
  /// Throws cuda::DeviceError, with what to do, where it does not.
  void check_fits(const cuda::DeviceMemory& memory) const;
};

}  // namespace oq
