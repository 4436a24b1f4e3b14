#pragma once

#include "kernels/cuda/block.h"
#include "kernels/cuda/kv_cells.h"

/// What both attentions do to rows of qkv: queries are rotated and quantized, keys and values
/// rotated and appended to the cache. Each is the work of a warp.
namespace oq::cuda {

/// Dimension d of a head of q or k at `position`, rotated.
OQ_DEVICE float rotated(const AttentionArgs& a, const float* head, int position, int d) {
  if (a.rotations == nullptr || d >= a.rope_dim) return head[d];
  const int half = a.rope_dim / 2;
  const float* turn = a.rotations + (int64_t(position) * half + d % half) * 2;
  const float x = head[d % half], y = head[d % half + half];
  return d < half ? x * turn[0] - y * turn[1] : y * turn[0] + x * turn[1];
}

/// The smallest and largest of term(d) for d in [0, n), NaNs where one is not finite.
template <class Term>
OQ_DEVICE void warp_range(int n, Term term, float& low, float& high) {
  low = INFINITY;
  high = -INFINITY;
  float poison = 0;
  for (int d = lane_id(); d < n; d += 32) {
    const float x = term(d);
    low = fminf(low, x);
    high = fmaxf(high, x);
    poison += x - x;
  }
  poison = warp_reduce<Sum>(poison);
  low = warp_reduce<Min>(low) + poison;
  high = warp_reduce<Max>(high) + poison;
}

/// KvGrid::of, as stored.
template <class Term>
OQ_DEVICE void fit_cells(int n, int bits, Term term, uint16_t stored[2], CellGrid& grid) {
  float low = 0, high = 0;
  warp_range(n, term, low, high);
  stored[1] = float_to_half(low);
  grid.low = half_to_float(stored[1]);
  const float scale = (high - grid.low) / float((1 << bits) - 1);
  stored[0] = float_to_half(scale > 0x1p-24f ? scale : 0x1p-24f + (high - high));
  grid.scale = half_to_float(stored[0]);
}

/// Appends the key of one row and KV head, or its value.
template <KvType kType>
OQ_DEVICE void append(const AttentionArgs& a, const HeadCache<kType>& cache, int row, int kv_head,
                      int position, bool value) {
  const int dim = a.kv.dim, width = a.heads * dim;
  const float* head = a.qkv + int64_t(row) * a.qkv_stride + width +
                      (value ? a.kv.kv_heads * dim : 0) + kv_head * dim;
  const auto term = [&](int d) { return value ? head[d] : rotated(a, head, position, d); };
  CellGrid grid{1.0f, 0.0f};
  if (has_grids(kType)) {
    uint16_t stored[2];
    fit_cells(dim, a.kv.bits, term, stored, grid);
    if (lane_id() < 2) {
      cache.grids[int64_t(position) * 4 + (value ? 2 : 0) + lane_id()] = stored[lane_id()];
    }
  }
  for (int c = lane_id(); c < cache.chunks; c += 32) {
    float x[8];
    OQ_UNROLL
    for (int i = 0; i < 8; ++i) x[i] = 8 * c + i < dim ? term(8 * c + i) : 0.0f;
    Cells<kType>::store(value ? cache.value(position, c) : cache.key(position, c), x, grid,
                        a.kv.bits);
  }
}

/// put(d, x) for the dimensions of a query, rotated, quantized and divided by sqrt(dim); zeros from
/// dim to `width`.
template <class Put>
OQ_DEVICE void bring_query(const AttentionArgs& a, int row, int head, int position, int width,
                           Put put) {
  const int dim = a.kv.dim;
  const float* from = a.qkv + int64_t(row) * a.qkv_stride + head * dim;
  const auto term = [&](int d) { return rotated(a, from, position, d); };
  const float top = float((1 << (a.query_bits < 16 ? a.query_bits : 1)) - 1);
  float scale = 1.0f, zero = 0.0f;
  if (a.query_bits < 16) {
    float low = 0, high = 0;
    warp_range(dim, term, low, high);
    scale = fmaxf((high - low) / top, 1e-5f) + (high - high);
    zero = rintf(-low / scale);
  }
  const float shrink = 1.0f / sqrtf(float(dim));
  for (int d = lane_id(); d < width; d += 32) {
    float x = d < dim ? term(d) : 0.0f;
    if (a.query_bits < 16 && d < dim) {
      x = scale * (fminf(fmaxf(rintf(x / scale) + zero, 0.0f), top) - zero);
    }
    put(d, x * shrink);
  }
}

/// The first position that a row sees.
OQ_DEVICE int seen_from(const AttentionArgs& a, int position) {
  return a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
}

}  // namespace oq::cuda
