#pragma once

#include <vector>

#include "format/half.h"
#include "kernels/cuda/kernels.h"
#include "kernels/kv_grid.h"

namespace oq::test {

/// A KV cache as it lies on the device, read by the rules of kernels.h. Heads count over sequences:
/// sequence x kv_heads + head.
class KvCopy {
 public:
  KvCopy(cuda::Stream& stream, const cuda::KvArgs& kv, int heads)
      : kv_(kv), chunk_(size_t(cuda::kv_chunk_bytes(kv.type))) {
    const size_t positions = size_t(heads) * size_t(kv.positions);
    keys_.resize(positions * chunks() * chunk_);
    values_.resize(keys_.size());
    cuda::download(stream, keys_.data(), kv.keys, keys_.size());
    cuda::download(stream, values_.data(), kv.values, values_.size());
    if (kv.bits > 8) return;
    grids_.resize(positions * 4);
    cuda::download(stream, grids_.data(), kv.grids, grids_.size() * sizeof(uint16_t));
  }

  /// Of codes.
  KvGrid grid(size_t head, int position, bool value) const {
    const size_t at = (first(head) + size_t(position)) * 4 + (value ? 2 : 0);
    return {f16{grids_[at]}, f16{grids_[at + 1]}, kv_.bits};
  }

  /// Dimension d as a number, or as its code.
  float number(size_t head, int position, bool value, int d) const {
    if (kv_.type == cuda::KvType::f32) return read<float>(head, position, value, d);
    return to_float(f16{read<uint16_t>(head, position, value, d)});
  }
  uint8_t code(size_t head, int position, bool value, int d) const {
    if (kv_.type == cuda::KvType::codes8) return read<uint8_t>(head, position, value, d);
    const std::byte* chunk = at(head, position, value, d / 8);
    return uint8_t(uint8_t(chunk[d % 8 / 2]) >> (d % 2 * 4) & 0xF);
  }

 private:
  size_t chunks() const { return size_t(kv_.padded_dim / 8); }
  size_t first(size_t head) const { return head * size_t(kv_.positions); }

  const std::byte* at(size_t head, int position, bool value, int chunk) const {
    const size_t from = first(head) * chunks(), p = size_t(position), c = size_t(chunk);
    if (value) return values_.data() + (from + p * chunks() + c) * chunk_;
    constexpr size_t kTile = cuda::kKvTile;
    return keys_.data() + (from + (p / kTile * chunks() + c) * kTile + p % kTile) * chunk_;
  }
  template <class T>
  T read(size_t head, int position, bool value, int d) const {
    return reinterpret_cast<const T*>(at(head, position, value, d / 8))[d % 8];
  }

  cuda::KvArgs kv_;
  size_t chunk_;  ///< bytes of 8 dimensions
  std::vector<std::byte> keys_, values_;
  std::vector<uint16_t> grids_;
};

}  // namespace oq::test
