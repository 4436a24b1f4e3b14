/// Weights that are made on the device: what bench/random_weights.h makes on the host, but for the
/// numbers themselves.

#include <cmath>

#include "format/bytes.h"
#include "runtime/backend/cuda/weight.h"

namespace oq {
namespace {

constexpr float kUniform = 1.7320508f;  ///< half the width of a uniform distribution of deviation 1

uint64_t seed_of(const TensorInfo& info) {
  uint64_t seed = 0xCBF29CE484222325u;  // FNV-1a
  for (const char c : info.name) seed = (seed ^ uint8_t(c)) * 0x100000001B3u;
  return seed;
}

/// Zero points as the file stores 8 of them: in the middle of the codes, and of an even number of
/// levels, which has no middle, above and below it in turn.
cuda::FillArgs middle_zeros(const PackedLayout& l, int levels) {
  const bool wide = l.packing.zero_mode == ZeroMode::i16;
  const int bits = wide ? 16 : int(l.zero_bytes), count = wide ? 2 : 8;
  cuda::FillArgs a{.kind = cuda::Fill::bytes};
  a.period = count * bits / 8;
  for (int i = 0; i < count; ++i) {
    const int zero = levels / 2 - (levels % 2 == 0 ? i % 2 : 0);
    a.pattern |= uint64_t(zero) << (i * bits);
  }
  return a;
}

}  // namespace

void CudaUploader::make_packed(const TensorInfo& info, float deviation,
                               std::span<const uint32_t> weak, CudaWeight& w) {
  const PackedLayout l = PackedLayout::of(info.rows, info.cols, info.packing);
  w.memory = cuda::Memory(cuda::offsets_of(l).bytes);
  const cuda::PackedMatrix matrix = cuda::matrix_of(l, w.memory.data());
  reserve(info.bytes);
  std::byte* base = staging_.data();
  const auto fill = [&](uint64_t at, uint64_t bytes, cuda::FillArgs a) {
    a.to = reinterpret_cast<uint32_t*>(base + at);
    a.words = int64_t((bytes + 3) / 4);  // beyond odd zero points lies padding
    a.seed = seed_of(info) + at;
    if (a.words > 0) cuda::fill(stream_, a);
  };
  const bool constant = l.packing.zero_mode == ZeroMode::constant;
  const int levels = l.packing.max_code() + 1;
  const double zero = constant ? l.packing.zero : levels / 2;
  const double off = (levels - 1) / 2.0 - zero;
  const auto scale = float(deviation / std::sqrt((double(levels) * levels - 1) / 12 + off * off));
  fill(0, l.panels * l.panel_bytes, {.kind = cuda::Fill::bits});
  const uint64_t groups = l.panels * l.groups;
  fill(l.scales_offset, groups * kPanelRows * 2,
       {.kind = cuda::Fill::halves, .mean = scale, .spread = 0.25f * scale});
  if (!constant) fill(l.zeros_offset, groups * l.zero_bytes, middle_zeros(l, levels));
  if (!weak.empty()) {
    cuda::upload(stream_, base + l.weak_index_offset, weak.data(), weak.size_bytes());
    fill(l.weak_offset, l.panels * weak.size() * kPanelRows * 2,
         {.kind = cuda::Fill::halves, .spread = kUniform * deviation});
  }
  cuda::repack(stream_, l, base, matrix);
  w.matrix = matrix;
}

std::unique_ptr<CudaWeight> CudaUploader::make(const TensorInfo& info, float deviation,
                                               std::span<const uint32_t> weak) {
  auto w = std::make_unique<CudaWeight>();
  if (info.kind == Kind::packed) {
    make_packed(info, deviation, weak, *w);
    return w;
  }
  if (info.kind != Kind::f16) {
    throw Error({.what = "only packed and f16 tensors are made on the device", .where = info.name});
  }
  w->memory = cuda::Memory(device_bytes(info));
  cuda::fill(stream_, {.kind = cuda::Fill::halves,
                       .to = w->memory.as<uint32_t>(),
                       .words = int64_t(w->memory.bytes() / 4),
                       .seed = seed_of(info),
                       .spread = kUniform * deviation});
  const auto stride = int(w->memory.bytes() / 2 / info.rows);
  const size_t row = size_t(stride) * 2, used = info.cols * 2;
  for (uint64_t r = 0; used < row && r < info.rows; ++r) {  // few shapes have padding
    cuda::clear(stream_, w->memory.data() + r * row + used, row - used);
  }
  w->matrix =
      cuda::DenseMatrix{cuda::Dense::f16, int(info.rows), int(info.cols), stride, w->memory.data()};
  return w;
}

}  // namespace oq
