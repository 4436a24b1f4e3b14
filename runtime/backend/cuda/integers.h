#pragma once

#include "kernels/cuda/integer.h"
#include "runtime/backend/cuda/engine_tuner.h"

namespace oq {

/// Linears whose inputs a scheme quantizes: onto their grids, then, where weights are packed,
/// through the engine that is the faster one. Measuring a shape that nobody has measured before
/// waits for the device.
class CudaIntegers {
 public:
  CudaIntegers(cuda::Stream& stream, const cuda::DeviceInfo& device)
      : stream_(stream), tuner_(device) {}

  /// Of the device's memory, that a call wants for its codes.
  static size_t code_bytes(const cuda::PackedArgs& args);
  static size_t value_bytes(const cuda::DenseArgs& args);
  /// Room for the largest call. Once, before any runs.
  void reserve(size_t bytes) { memory_ = cuda::Memory(bytes); }

  /// PRECOND: in.bits is 2 to 8.
  void run(const cuda::PackedArgs& args);

  /// The same call with its input behind norm and grid: floats that the next call overwrites.
  cuda::DenseArgs on_grid(const cuda::DenseArgs& args);

  const std::string& notice() const { return tuner_.notice(); }

 private:
  std::optional<double> measure(cuda::IntegerArgs call, EngineChoice choice);
  void start(cuda::IntegerArgs call, EngineChoice choice);
  cuda::QuantizedRows rows_for(const cuda::PackedArgs& args);
  void check_room(size_t bytes) const;

  cuda::Stream& stream_;
  EngineTuner tuner_;
  cuda::Memory memory_;  ///< for codes; where it lies captured steps know
};

}  // namespace oq
