#pragma once

#include "kernels/cuda/integer.h"
#include "runtime/backend/cuda/engine_tuner.h"

namespace oq {

/// Packed linears whose inputs a scheme quantizes: onto their grids, then through the engine that
/// is the faster one. Measuring a shape that nobody has measured before waits for the device.
class CudaIntegers {
 public:
  CudaIntegers(cuda::Stream& stream, const cuda::DeviceInfo& device)
      : stream_(stream), tuner_(device) {}

  /// Of the device's memory, that a call wants for its codes.
  static size_t code_bytes(const cuda::PackedArgs& args);
  /// Room for the largest call. Once, before any runs.
  void reserve(size_t bytes) { memory_ = cuda::Memory(bytes); }

  /// PRECOND: in.bits is 2 to 8.
  void run(const cuda::PackedArgs& args);

  const std::string& notice() const { return tuner_.notice(); }

 private:
  std::optional<double> measure(cuda::IntegerArgs call, cuda::Engine engine);
  cuda::QuantizedRows rows_for(const cuda::PackedArgs& args);

  cuda::Stream& stream_;
  EngineTuner tuner_;
  cuda::Memory memory_;  ///< for codes; where it lies captured steps know
};

}  // namespace oq
