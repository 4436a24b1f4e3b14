#pragma once

#include <vector>

#include "kernels/cuda/integer.h"
#include "runtime/backend/cuda/engine_tuner.h"

namespace oq {

/// Packed linears whose inputs a scheme quantizes: onto their grids, then through the engine that
/// is the faster one. Measuring a shape that nobody has measured before waits for the device.
class CudaIntegers {
 public:
  CudaIntegers(cuda::Stream& stream, const cuda::DeviceInfo& device)
      : stream_(stream), tuner_(device) {}

  /// PRECOND: in.bits is 2 to 8.
  void run(const cuda::PackedArgs& args);

  const std::string& notice() const { return tuner_.notice(); }

 private:
  std::optional<double> measure(cuda::IntegerArgs call, cuda::Engine engine);
  cuda::QuantizedRows rows_for(const cuda::PackedArgs& args);

  cuda::Stream& stream_;
  EngineTuner tuner_;
  /// For codes, the last one in use. Those that grew too small stay: a captured step may have them.
  std::vector<cuda::Memory> memory_;
};

}  // namespace oq
