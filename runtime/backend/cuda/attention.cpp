#include "runtime/backend/cuda/attention.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <string>

#include "format/bytes.h"

namespace oq {
namespace {

constexpr int64_t kMostDim = 256;  ///< of a head: a lane has 8 of them
/// Rows of one sequence from which blocks of queries pay: below, the split over positions keeps
/// more of a device at work. Not measured.
constexpr int kFlashRows = 9;

cuda::KvType kv_type_of(int bits) {
  return bits == 32   ? cuda::KvType::f32
         : bits == 16 ? cuda::KvType::f16
         : bits > 4   ? cuda::KvType::codes8
                      : cuda::KvType::codes4;
}

}  // namespace

AttentionRoom::AttentionRoom(const Plan& plan) {
  const ModelConfig& c = plan.config;
  kv_type = kv_type_of(plan.kv_bits);
  positions = int(round_up(uint64_t(plan.context), cuda::kKvStretch));
  padded_dim = int(round_up(uint64_t(c.head_dim), 8));
  stretches = positions / cuda::kKvStretch;
  const uint64_t heads = uint64_t(plan.sequences) * uint64_t(c.kv_heads);
  const uint64_t cells = heads * uint64_t(positions) * uint64_t(padded_dim);
  cell_bytes = cells / 8 * uint64_t(cuda::kv_chunk_bytes(kv_type));
  if (plan.kv_bits <= 8) grid_bytes = heads * uint64_t(positions) * 8;
  const auto rows = uint64_t(std::min<int64_t>(plan.max_rows, CudaBatch::kSliceRows));
  part_bytes = rows * uint64_t(c.heads) * uint64_t(stretches) * uint64_t(padded_dim + 2) * 4;
  arrived_bytes = rows * uint64_t(c.kv_heads) * sizeof(uint32_t);
  rotation_bytes = uint64_t(plan.context) * uint64_t(c.rope_dim) * 4;
}

CudaAttention::CudaAttention(cuda::Stream& stream, const Plan& plan)
    : stream_(stream), plan_(plan), room_(plan) {
  const ModelConfig& c = plan.config;
  if (c.head_dim > kMostDim) {
    throw cuda::DeviceError({.what = "heads too wide for the CUDA kernels",
                             .where = "head_dim",
                             .expected = "at most " + std::to_string(kMostDim),
                             .found = std::to_string(c.head_dim),
                             .hint = "use --backend cpu"});
  }
  for (int64_t l = 0; l < c.blocks; ++l) {
    Layer layer{cuda::Memory(room_.cell_bytes), cuda::Memory(room_.cell_bytes), {}};
    if (room_.grid_bytes > 0) layer.grids = cuda::Memory(room_.grid_bytes);
    layers_.push_back(std::move(layer));
  }
  parts_ = cuda::Memory(room_.part_bytes);
  arrived_ = cuda::Memory(room_.arrived_bytes);
  cuda::clear(stream_, arrived_.data(), arrived_.bytes());
}

/// In double, as the CPU does: a float's angle is wrong in its fourth digit at position 8000.
void CudaAttention::make_rotations(const CudaWeight& inv_freq) {
  const double factor = plan_.config.rope_attention_factor;
  std::vector<float> turns;
  turns.reserve(size_t(plan_.context) * inv_freq.values.size() * 2);
  for (int64_t p = 0; p < plan_.context; ++p) {
    for (float f : inv_freq.values) {
      const double angle = double(p) * double(f);
      turns.push_back(float(std::cos(angle) * factor));
      turns.push_back(float(std::sin(angle) * factor));
    }
  }
  rotations_ = cuda::uploaded(stream_, std::span<const float>(turns));
}

cuda::KvArgs CudaAttention::cache(int64_t layer) const {
  const Layer& l = layers_[size_t(layer)];
  return {.type = room_.kv_type,
          .bits = plan_.kv_bits,
          .positions = room_.positions,
          .kv_heads = int(plan_.config.kv_heads),
          .dim = int(plan_.config.head_dim),
          .padded_dim = room_.padded_dim,
          .keys = l.keys.data(),
          .values = l.values.data(),
          .grids = l.grids.as<uint16_t>()};
}

void CudaAttention::run(int64_t layer, const CudaBatch& batch, const CudaWeight* inv_freq,
                        const CudaWeight* alibi, const float* qkv, int qkv_stride, float* out,
                        int out_stride) {
  const ModelConfig& c = plan_.config;
  if (inv_freq != nullptr && rotations_.bytes() == 0) make_rotations(*inv_freq);
  const auto args = [&](const CudaBatch::Slice& s) -> cuda::AttentionArgs {
    return {
        .kv = cache(layer),
        .qkv = qkv + int64_t(s.first) * qkv_stride,
        .qkv_stride = qkv_stride,
        .out = out + int64_t(s.first) * out_stride,
        .out_stride = out_stride,
        .heads = int(c.heads),
        .window = int(c.window),
        .rotations = inv_freq == nullptr ? nullptr : rotations_.as<float>(),
        .rope_dim = int(c.rope_dim),
        .alibi = alibi == nullptr ? nullptr : alibi->floats(),
        .alibi_stride = alibi == nullptr ? 0 : std::get<cuda::DenseMatrix>(alibi->matrix).stride,
        .query_bits = plan_.scheme.query_bits,
        .runs = s.runs,
        .run_first = s.run_first,
        .order = s.order,
        .positions = batch.positions() + s.first,
        .sequences = batch.sequences() + s.first,
        .rows = s.rows,
        .longest_run = s.longest_run,
        .stretches = s.last_position / cuda::kKvStretch + 1,
        .parts = parts_.as<float>(),
        .arrived = arrived_.as<uint32_t>()};
  };
  if (batch.whole().longest_run >= kFlashRows && cuda::can_flash(stream_, cache(layer))) {
    return cuda::flash_attention(stream_, args(batch.whole()));
  }
  for (const CudaBatch::Slice& s : batch.slices()) cuda::attention(stream_, args(s));
}

}  // namespace oq
