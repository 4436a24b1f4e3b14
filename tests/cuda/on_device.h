#pragma once

#include <string>
#include <vector>

#include "kernels/cuda/kernels.h"
#include "tests/kernels/compare.h"

/// What the tests of the CUDA kernels share. They know only streams and device memory, so they run
/// on the emulator and on a GPU alike.
namespace oq::test {

/// A GPU rounds as its own instructions do; the emulator as the host's, the same on every run.
#if defined(OQ_DEVICE_TWIN)
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

/// Whether kernels on bit planes run here: sm_75 has no instruction for them, and stops.
inline bool runs_planes() {
  std::string why;
  const auto device = cuda::find_device(why);
  return device && device->major >= 8;
}

/// A matrix of floats on the device, rows padded to a multiple of 4 with NaNs, which no kernel may
/// let through.
class DeviceRows {
 public:
  DeviceRows(cuda::Stream& stream, int rows, int cols)
      : stream_(stream), rows_(rows), cols_(cols), stride_((cols + 3) / 4 * 4) {
    fill(std::vector<float>(size_t(rows * cols), NAN));
  }
  DeviceRows(cuda::Stream& stream, int rows, int cols, const std::vector<float>& values)
      : DeviceRows(stream, rows, cols) {
    fill(values);
  }

  float* data() const { return memory_.as<float>(); }
  int stride() const { return stride_; }

  void fill(const std::vector<float>& values) {
    std::vector<float> padded(size_t(rows_ * stride_), NAN);
    for (int r = 0; r < rows_; ++r) {
      std::copy_n(values.data() + r * cols_, cols_, padded.data() + r * stride_);
    }
    memory_ = cuda::uploaded(stream_, std::span<const float>(padded));
  }
  std::vector<float> read() const {
    std::vector<float> padded(size_t(rows_ * stride_)), values;
    cuda::download(stream_, padded.data(), memory_.data(), memory_.bytes());
    for (int r = 0; r < rows_; ++r) {
      values.insert(values.end(), padded.begin() + r * stride_,
                    padded.begin() + r * stride_ + cols_);
    }
    return values;
  }

 private:
  cuda::Stream& stream_;
  int rows_, cols_, stride_;
  cuda::Memory memory_;
};

/// A packed tensor as the device holds it.
struct DevicePacked {
  cuda::Memory memory;
  cuda::PackedMatrix matrix;

  DevicePacked(cuda::Stream& stream, const PackedLayout& layout, std::span<const std::byte> bytes)
      : memory(cuda::offsets_of(layout).bytes), matrix(cuda::matrix_of(layout, memory.data())) {
    const cuda::Memory file = cuda::uploaded(stream, bytes);
    cuda::repack(stream, layout, file.data(), matrix);
    stream.synchronize();
  }
  DevicePacked(cuda::Stream& stream, const PackedBuilder& b)
      : DevicePacked(stream, b.layout(), b.bytes()) {}
};

/// Rows of x as they are.
inline cuda::InputArgs plain_input(const DeviceRows& x, int tokens) {
  return {.x = x.data(),
          .stride = x.stride(),
          .tokens = tokens,
          .rows = nullptr,
          .norm = {},
          .bits = 16,
          .count = nullptr,
          .expert_stride = 0};
}
inline cuda::OutputArgs output_to(const DeviceRows& y, cuda::Finish finish) {
  return {.finish = finish,
          .y = y.data(),
          .stride = y.stride(),
          .activation = Activation::silu,
          .expert_stride = 0};
}

}  // namespace oq::test
