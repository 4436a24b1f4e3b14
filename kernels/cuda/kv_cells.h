#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"

/// How the KV cache's kinds of cells are read and written, 8 dimensions at a time.
namespace oq::cuda {

/// The grid of one position's keys or values (kernels/kv_grid.h); of floats, not used.
struct CellGrid {
  float scale, low;
};

OQ_DEVICE uint32_t code_of(float x, CellGrid grid, int bits) {
  const float c = (x - grid.low) / grid.scale + 0.5f;
  return c >= 1.0f ? uint32_t(fminf(c, float((1 << bits) - 1))) : 0u;
}

/// A chunk is 8 dimensions, kv_chunk_bytes(kType) of them.
template <KvType kType>
struct Cells;

template <>
struct Cells<KvType::f32> {
  OQ_DEVICE static void load(const std::byte* p, CellGrid, float out[8]) {
    const auto* v = reinterpret_cast<const Words4*>(p);
    OQ_UNROLL
    for (int i = 0; i < 8; ++i) out[i] = bits_to_float(v[i / 4].w[i % 4]);
  }
  OQ_DEVICE static void store(std::byte* p, const float x[8], CellGrid, int) {
    OQ_UNROLL
    for (int i = 0; i < 8; ++i) reinterpret_cast<float*>(p)[i] = x[i];
  }
};

template <>
struct Cells<KvType::f16> {
  OQ_DEVICE static void load(const std::byte* p, CellGrid, float out[8]) {
    const Words4 v = *reinterpret_cast<const Words4*>(p);
    OQ_UNROLL
    for (int i = 0; i < 8; ++i) out[i] = half_to_float(uint16_t(v.w[i / 2] >> (i % 2 * 16)));
  }
  OQ_DEVICE static void store(std::byte* p, const float x[8], CellGrid, int) {
    OQ_UNROLL
    for (int i = 0; i < 8; ++i) reinterpret_cast<uint16_t*>(p)[i] = float_to_half(x[i]);
  }
};

template <>
struct Cells<KvType::codes8> {
  OQ_DEVICE static void load(const std::byte* p, CellGrid grid, float out[8]) {
    const Words2 v = *reinterpret_cast<const Words2*>(p);
    OQ_UNROLL
    for (int i = 0; i < 8; ++i) {
      out[i] = grid.scale * float(v.w[i / 4] >> (i % 4 * 8) & 0xFFu) + grid.low;
    }
  }
  OQ_DEVICE static void store(std::byte* p, const float x[8], CellGrid grid, int bits) {
    Words2 v{};
    OQ_UNROLL
    for (int i = 0; i < 8; ++i) v.w[i / 4] |= code_of(x[i], grid, bits) << (i % 4 * 8);
    *reinterpret_cast<Words2*>(p) = v;
  }
};

template <>
struct Cells<KvType::codes4> {
  OQ_DEVICE static void load(const std::byte* p, CellGrid grid, float out[8]) {
    const uint32_t v = *reinterpret_cast<const uint32_t*>(p);
    OQ_UNROLL
    for (int i = 0; i < 8; ++i) out[i] = grid.scale * float(v >> (i * 4) & 0xFu) + grid.low;
  }
  OQ_DEVICE static void store(std::byte* p, const float x[8], CellGrid grid, int bits) {
    uint32_t v = 0;
    OQ_UNROLL
    for (int i = 0; i < 8; ++i) v |= code_of(x[i], grid, bits) << (i * 4);
    *reinterpret_cast<uint32_t*>(p) = v;
  }
};

constexpr bool has_grids(KvType type) { return type == KvType::codes8 || type == KvType::codes4; }

/// The part of a cache that belongs to one sequence and KV head.
template <KvType kType>
struct HeadCache {
  static constexpr int kChunk = kv_chunk_bytes(kType);
  std::byte *keys, *values;
  uint16_t* grids;  ///< [position][4], of codes
  int chunks;       ///< of a position

  OQ_DEVICE HeadCache(const KvArgs& kv, int sequence, int head) : chunks(kv.padded_dim / 8) {
    const int64_t first = (int64_t(sequence) * kv.kv_heads + head) * kv.positions;
    keys = static_cast<std::byte*>(kv.keys) + first * chunks * kChunk;
    values = static_cast<std::byte*>(kv.values) + first * chunks * kChunk;
    grids = kv.grids == nullptr ? nullptr : kv.grids + first * 4;
  }

  OQ_DEVICE std::byte* key(int position, int chunk) const {
    const int64_t tile = position / kKvTile;
    return keys + ((tile * chunks + chunk) * kKvTile + position % kKvTile) * kChunk;
  }
  OQ_DEVICE std::byte* value(int position, int chunk) const {
    return values + (int64_t(position) * chunks + chunk) * kChunk;
  }
  /// Of keys, or with `of_values` of values.
  OQ_DEVICE CellGrid grid(int position, bool of_values) const {
    if (!has_grids(kType)) return {1.0f, 0.0f};
    const uint16_t* g = grids + int64_t(position) * 4 + (of_values ? 2 : 0);
    return {half_to_float(g[0]), half_to_float(g[1])};
  }
};

}  // namespace oq::cuda
