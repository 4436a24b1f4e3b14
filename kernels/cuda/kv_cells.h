#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"

/// How the KV cache's three kinds of cells are read and written, 8 dimensions at a time.
namespace oq::cuda {

/// The grid of one position's keys or values (kernels/kv_grid.h); of floats, not used.
struct CellGrid {
  float scale, low;
};

struct CellsF32 {
  using Cell = float;
  OQ_DEVICE static void load8(const Cell* p, CellGrid, float out[8]) {
    const auto* v = reinterpret_cast<const Words4*>(p);
    OQ_UNROLL
    for (int i = 0; i < 8; ++i) out[i] = bits_to_float(v[i / 4].w[i % 4]);
  }
  OQ_DEVICE static Cell make(float x, CellGrid, int) { return x; }
};

struct CellsF16 {
  using Cell = uint16_t;
  OQ_DEVICE static void load8(const Cell* p, CellGrid, float out[8]) {
    const Words4 v = *reinterpret_cast<const Words4*>(p);
    OQ_UNROLL
    for (int i = 0; i < 8; ++i) out[i] = half_to_float(uint16_t(v.w[i / 2] >> (i % 2 * 16)));
  }
  OQ_DEVICE static Cell make(float x, CellGrid, int) { return float_to_half(x); }
};

struct CellsCodes {
  using Cell = uint8_t;
  OQ_DEVICE static void load8(const Cell* p, CellGrid grid, float out[8]) {
    const Words2 v = *reinterpret_cast<const Words2*>(p);
    OQ_UNROLL
    for (int i = 0; i < 8; ++i) {
      out[i] = grid.scale * float(v.w[i / 4] >> (i % 4 * 8) & 0xFFu) + grid.low;
    }
  }
  OQ_DEVICE static Cell make(float x, CellGrid grid, int bits) {
    const float c = (x - grid.low) / grid.scale + 0.5f;
    return c >= 1.0f ? uint8_t(fminf(c, float((1 << bits) - 1))) : uint8_t(0);
  }
};

/// The part of a cache that belongs to one sequence and KV head.
template <class Cells>
struct HeadCache {
  typename Cells::Cell *keys, *values;
  uint16_t* grids;  ///< [position][4], of codes
  int padded_dim;

  OQ_DEVICE HeadCache(const KvArgs& kv, int sequence, int head) : padded_dim(kv.padded_dim) {
    const int64_t first = (int64_t(sequence) * kv.kv_heads + head) * kv.positions;
    keys = static_cast<typename Cells::Cell*>(kv.keys) + first * kv.padded_dim;
    values = static_cast<typename Cells::Cell*>(kv.values) + first * kv.padded_dim;
    grids = kv.grids == nullptr ? nullptr : kv.grids + first * 4;
  }

  OQ_DEVICE int64_t key_at(int position, int d) const {
    const int64_t tile = position / kKvTile;
    return (tile * (padded_dim / 8) + d / 8) * (kKvTile * 8) + position % kKvTile * 8 + d % 8;
  }
  OQ_DEVICE int64_t value_at(int position, int d) const {
    return int64_t(position) * padded_dim + d;
  }
  /// Of keys, or with `of_values` of values.
  OQ_DEVICE CellGrid grid(int position, bool of_values) const {
    const uint16_t* g = grids + int64_t(position) * 4 + (of_values ? 2 : 0);
    return {half_to_float(g[0]), half_to_float(g[1])};
  }
};

}  // namespace oq::cuda
