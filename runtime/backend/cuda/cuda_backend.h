#pragma once

#include <functional>
#include <memory>
#include <string>

#include "kernels/cuda/stream.h"
#include "runtime/backend/backend.h"

namespace oq {

struct CudaOptions {
  /// Told what runs and how much of the device's memory it takes, before any of it is taken.
  std::function<void(const std::string&)> notice = {};
  /// Steps of up to 8 rows become graphs. Without, kernels are started one by one: the same bits.
  bool captures = true;
  /// Tensors for which this gives more than 0 are made on the device, random with that deviation,
  /// and not brought from the file: for models whose weights do not matter.
  std::function<float(const TensorInfo&)> random = {};
};

/// The first CUDA device. Weights are uploaded and rearranged as they are prepared; between `begin`
/// and `read_logits` nothing waits. Packed weights meet activations of 22 bits, exact or not.
/// Throws cuda::DeviceError where no device can be used; so do `configure` where the device cannot
/// run the plan or has not the memory, and any op where the device fails.
std::unique_ptr<Backend> make_cuda_backend(CudaOptions options = {});

}  // namespace oq
