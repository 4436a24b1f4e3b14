#pragma once

#include <cstddef>
#include <string>

/// What OQ asks of a device before it uses one. Without the CUDA runtime, so that the emulator
/// refuses what a GPU's build refuses, in the same words.
namespace oq::cuda {

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;     ///< compute capability
  int processors = 0;           ///< SMs
  int driver = 0, toolkit = 0;  ///< versions, as CUDA counts them: 12040 is 12.4

  /// Tensor cores that multiply bits (mma_and_popc): 8.0 to 9.0; later ones take them apart in
  /// software, earlier ones know xor alone.
  bool has_bit_planes() const { return major == 8 || major == 9; }
};

/// Why a device of this compute capability cannot be used, or empty.
inline std::string why_not(const DeviceInfo& d) {
  if (d.major > 7 || (d.major == 7 && d.minor >= 5)) return "";
  return d.name + " is of compute capability " + std::to_string(d.major) + "." +
         std::to_string(d.minor) + "; 7.5 is the least";
}

/// Why the runtime takes no device with this driver, or empty; versions, and 0 where there is none.
inline std::string why_not(int driver, int runtime) {
  const auto text = [](int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  };
  if (driver == 0) return "no NVIDIA driver";
  if (driver >= runtime) return "";
  return "the NVIDIA driver is made for CUDA " + text(driver) + ", this build needs " +
         text(runtime);
}

}  // namespace oq::cuda
