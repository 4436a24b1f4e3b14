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

/// Brings tensors onto the device. A file's bytes pass through two pieces of pinned memory in turn:
/// while one is copied to the device, the next is read from the mapping into the other. One thread
/// at a time.
class CudaUploader {
 public:
  static constexpr size_t kPiece = 8 << 20;

  explicit CudaUploader(cuda::Stream& stream, size_t piece = kPiece)
      : stream_(stream), piece_(piece) {}

  /// What `upload` takes of the device's memory for a tensor, and keeps.
  static uint64_t device_bytes(const TensorInfo& info);

  /// Room on the device for the file's bytes of the largest packed tensor.
  void reserve(uint64_t bytes);

  /// Checks the tensor's CRC and scales first: what is on a device nobody looks at again.
  std::unique_ptr<CudaWeight> upload(const File& file, const TensorInfo& info);

  /// A weight of the tensor's kind and shape, random with mean 0 (where the zero point is constant:
  /// half a code beside it) and this deviation, made on the device. `weak` has the indices of a
  /// packed tensor's weak columns.
  std::unique_ptr<CudaWeight> make(const TensorInfo& info, float deviation,
                                   std::span<const uint32_t> weak);

  /// Waits until all is on the device, and gives back what only uploads need.
  void finish();

 private:
  struct Slot {
    cuda::Pinned memory;
    cuda::Event copied;
  };
  void copy(std::byte* to, std::span<const std::byte> from);
  void upload_packed(const File& file, const TensorInfo& info, CudaWeight& w);
  void make_packed(const TensorInfo& info, float deviation, std::span<const uint32_t> weak,
                   CudaWeight& w);
  void upload_dense(const File& file, const TensorInfo& info, CudaWeight& w);

  cuda::Stream& stream_;
  size_t piece_;
  std::vector<Slot> slots_;  ///< two, or none yet
  size_t next_ = 0;          ///< whose turn it is
  cuda::Memory staging_;     ///< a file's bytes on their way into tiles
};

}  // namespace oq
