#pragma once

#include <memory>
#include <variant>
#include <vector>

#include "format/file.h"
#include "kernels/cuda/kernels.h"
#include "runtime/backend/backend.h"

namespace oq {

/// A tensor in device memory, in the form that the kernels compute with.
struct CudaWeight final : Weight {
  using Matrix = std::variant<cuda::PackedMatrix, cuda::DenseMatrix>;

  cuda::Memory memory;
  Matrix matrix;
  /// Of f32 vectors only: their values, and the largest magnitude.
  std::vector<float> values;
  float peak = 0;

  int rows() const {
    return std::visit([](const auto& m) { return m.rows; }, matrix);
  }
  int cols() const {
    return std::visit([](const auto& m) { return m.cols; }, matrix);
  }
  /// PRECOND: f32.
  const float* floats() const { return memory.as<float>(); }
};

/// Brings tensors onto the device. One thread at a time.
class CudaUploader {
 public:
  explicit CudaUploader(cuda::Stream& stream) : stream_(stream) {}

  /// Checks the tensor's CRC and scales first: what is on a device nobody looks at again.
  std::unique_ptr<CudaWeight> upload(const File& file, const TensorInfo& info);

 private:
  void upload_packed(const File& file, const TensorInfo& info, CudaWeight& w);
  void upload_dense(const File& file, const TensorInfo& info, CudaWeight& w);

  cuda::Stream& stream_;
  cuda::Memory staging_;  ///< a file's bytes on their way into tiles
};

}  // namespace oq
