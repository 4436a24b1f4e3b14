#include "runtime/backend/cuda/weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "format/bytes.h"
#include "format/error.h"

namespace oq {

void CudaUploader::upload_packed(const File& file, const TensorInfo& info, CudaWeight& w) {
  const PackedLayout layout = file.packed(info).layout();
  w.memory = cuda::Memory(cuda::offsets_of(layout).bytes);
  const cuda::PackedMatrix matrix = cuda::matrix_of(layout, w.memory.data());
  if (staging_.bytes() < info.bytes) {
    stream_.synchronize();  // the last tensor's kernels may still read it
    staging_ = cuda::Memory();
    staging_ = cuda::Memory(info.bytes);
  }
  cuda::upload(stream_, staging_.data(), file.data(info).data(), info.bytes);
  cuda::repack(stream_, layout, staging_.data(), matrix);
  w.matrix = matrix;
}

void CudaUploader::upload_dense(const File& file, const TensorInfo& info, CudaWeight& w) {
  const cuda::Dense type = info.kind == Kind::f32   ? cuda::Dense::f32
                           : info.kind == Kind::f16 ? cuda::Dense::f16
                                                    : cuda::Dense::bf16;
  const uint64_t size = info.kind == Kind::f32 ? 4 : 2;
  const uint64_t stride = round_up(info.cols, 16 / size);
  constexpr uint64_t kMost = std::numeric_limits<int>::max() / 2;
  if (info.rows > kMost || info.cols > kMost) {
    throw Error({.what = "a matrix too large for the CUDA kernels", .where = info.name});
  }
  w.memory = cuda::Memory(info.rows * stride * size);
  const std::byte* data = file.data(info).data();
  if (stride == info.cols) {
    cuda::upload(stream_, w.memory.data(), data, w.memory.bytes());
  } else {
    std::vector<std::byte> padded(w.memory.bytes(), std::byte{0});
    for (uint64_t r = 0; r < info.rows; ++r) {
      std::memcpy(padded.data() + r * stride * size, data + r * info.cols * size, info.cols * size);
    }
    cuda::upload(stream_, w.memory.data(), padded.data(), padded.size());
  }
  w.matrix = cuda::DenseMatrix{type, int(info.rows), int(info.cols), int(stride), w.memory.data()};
  if (info.kind != Kind::f32 || info.rows != 1) return;
  w.values.resize(info.cols);
  std::memcpy(w.values.data(), data, info.cols * 4);
  for (float v : w.values) w.peak = std::max(w.peak, std::fabs(v));
}

std::unique_ptr<CudaWeight> CudaUploader::upload(const File& file, const TensorInfo& info) {
  return with_place(file.path().string() + ", " + info.name, [&] {
    file.verify(info);
    auto w = std::make_unique<CudaWeight>();
    if (info.kind == Kind::packed) {
      upload_packed(file, info, *w);
    } else {
      upload_dense(file, info, *w);
    }
    return w;
  });
}

}  // namespace oq
