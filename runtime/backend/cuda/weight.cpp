#include "runtime/backend/cuda/weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "format/bytes.h"

namespace oq {

namespace {

uint64_t element_bytes(const TensorInfo& info) { return info.kind == Kind::f32 ? 4 : 2; }

/// Elements from row to row of a dense matrix.
uint64_t stride_of(const TensorInfo& info) { return round_up(info.cols, 16 / element_bytes(info)); }

}  // namespace

uint64_t CudaUploader::device_bytes(const TensorInfo& info) {
  if (info.kind != Kind::packed) return info.rows * stride_of(info) * element_bytes(info);
  return cuda::offsets_of(PackedLayout::of(info.rows, info.cols, info.packing)).bytes;
}

void CudaUploader::reserve(uint64_t bytes) {
  if (staging_.bytes() >= bytes) return;
  stream_.synchronize();  // the last tensor's kernels may still read it
  staging_ = cuda::Memory();
  staging_ = cuda::Memory(bytes);
}

void CudaUploader::finish() {
  if (slots_.empty() && staging_.bytes() == 0) return;
  stream_.synchronize();
  staging_ = cuda::Memory();
  slots_.clear();
}

void CudaUploader::copy(std::byte* to, std::span<const std::byte> from) {
  while (slots_.size() < 2) slots_.push_back({cuda::Pinned(piece_), cuda::Event()});
  for (size_t at = 0; at < from.size(); at += piece_) {
    Slot& slot = slots_[next_];
    next_ = 1 - next_;
    const auto piece = from.subspan(at, std::min(piece_, from.size() - at));
    slot.copied.wait();
    std::memcpy(slot.memory.data(), piece.data(), piece.size());
    cuda::upload(stream_, to + at, slot.memory, piece.size());
    slot.copied.record(stream_);
  }
}

void CudaUploader::upload_packed(const File& file, const TensorInfo& info, CudaWeight& w) {
  const PackedLayout layout = file.packed(info).layout();
  w.memory = cuda::Memory(cuda::offsets_of(layout).bytes);
  const cuda::PackedMatrix matrix = cuda::matrix_of(layout, w.memory.data());
  reserve(info.bytes);
  copy(staging_.data(), file.data(info));
  cuda::repack(stream_, layout, staging_.data(), matrix);
  w.matrix = matrix;
}

void CudaUploader::upload_dense(const File& file, const TensorInfo& info, CudaWeight& w) {
  const cuda::Dense type = info.kind == Kind::f32   ? cuda::Dense::f32
                           : info.kind == Kind::f16 ? cuda::Dense::f16
                                                    : cuda::Dense::bf16;
  const uint64_t size = element_bytes(info), stride = stride_of(info);
  constexpr uint64_t kMost = std::numeric_limits<int>::max() / 2;
  if (info.rows > kMost || info.cols > kMost) {
    throw cuda::DeviceError(
        {.what = "a matrix too large for the CUDA kernels", .where = info.name});
  }
  w.memory = cuda::Memory(device_bytes(info));
  const std::byte* data = file.data(info).data();
  if (stride == info.cols) {
    copy(w.memory.data(), file.data(info));
  } else {
    std::vector<std::byte> padded(w.memory.bytes(), std::byte{0});
    for (uint64_t r = 0; r < info.rows; ++r) {
      std::memcpy(padded.data() + r * stride * size, data + r * info.cols * size, info.cols * size);
    }
    copy(w.memory.data(), padded);
  }
  w.matrix = cuda::DenseMatrix{type, int(info.rows), int(info.cols), int(stride), w.memory.data()};
  if (info.kind != Kind::f32 || info.rows != 1) return;
  w.values.resize(info.cols);
  std::memcpy(w.values.data(), data, info.cols * 4);
  for (float v : w.values) w.peak = std::max(w.peak, std::fabs(v));
}

std::unique_ptr<CudaWeight> CudaUploader::upload(const File& file, const TensorInfo& info) {
  with_place(file.path().string() + ", " + info.name, [&] { file.verify(info); });
  auto w = std::make_unique<CudaWeight>();
  if (info.kind == Kind::packed) {
    upload_packed(file, info, *w);
  } else {
    upload_dense(file, info, *w);
  }
  return w;
}

}  // namespace oq
