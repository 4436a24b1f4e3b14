#include "runtime/backend/cpu/attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>

namespace oq {
namespace {

constexpr int64_t kTileQueries = 24;  ///< queries per tile at the most, unless a group has more

}  // namespace

void CpuAttention::make_tiles(const Batch& batch, std::span<const int64_t> runs) {
  const int64_t tokens_per_tile = std::max<int64_t>(1, kTileQueries / group());
  tiles_.clear();
  for (size_t r = 0; r + 1 < runs.size(); ++r) {
    for (int64_t row = runs[r]; row < runs[r + 1]; row += tokens_per_tile) {
      const int64_t n = std::min(tokens_per_tile, runs[r + 1] - row);
      // Rows of a run stand at consecutive positions.
      const int64_t first = first_seen(batch.positions[size_t(row)]);
      const int64_t end = batch.positions[size_t(row + n - 1)] + 1;
      for (int64_t h = 0; h < config_.kv_heads; ++h) {
        tiles_.push_back({row, n, batch.sequences[size_t(row)], h, first, end, 0});
      }
    }
  }
}

void CpuAttention::load_queries(int64_t index, const Batch& batch, cpu::Rows qkv,
                                Scratch& s) const {
  const Tile& tile = tiles_[size_t(index)];
  const int64_t dim = config_.head_dim, queries = tile.tokens * group();
  const float scale = 1.0f / std::sqrt(float(dim));
  s.tile = index;
  s.q.resize(size_t(queries * dim));
  s.sights.resize(size_t(queries));
  s.part_out.resize(size_t(queries * dim));
  s.scores.resize(size_t(queries * kStretch));
  s.parts.resize(size_t(queries));
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t row = tile.row + i / group(), head = tile.kv_head * group() + i % group();
    const float* q = qkv.row(row) + head * dim;
    for (int64_t d = 0; d < dim; ++d) s.q[size_t(i * dim + d)] = q[d] * scale;
    const int64_t position = batch.positions[size_t(row)];
    s.sights[size_t(i)] = {.first = first_seen(position),
                           .end = position + 1,
                           .bias = alibi_ == nullptr ? nullptr : alibi_ + head * config_.context};
    s.parts[size_t(i)] = {0, 0, s.part_out.data() + i * dim};
  }
}

const void* CpuAttention::first_keys(const CpuKvCache& cache, int64_t layer,
                                     const Piece& piece) const {
  const Tile& tile = tiles_[size_t(piece.tile)];
  return cache.keys(layer, tile.sequence, tile.kv_head, piece.stretch * kStretch);
}

void CpuAttention::attend(const CpuKvCache& cache, int64_t layer, const Piece& piece,
                          const void* next_keys, Scratch& s) const {
  const Tile& tile = tiles_[size_t(piece.tile)];
  const int64_t begin = piece.stretch * kStretch;
  const cpu::Stretch stretch = {begin, std::min(tile.end, begin + kStretch), next_keys};
  const auto run = [&](auto kernel, const auto& head) {
    kernel(s.q.data(), int64_t(s.parts.size()), config_.head_dim, head, stretch, s.sights.data(),
           s.scores.data(), s.parts.data());
  };
  if (cache.bits() == 32) {
    run(kernels_.attend_f32, cache.head<float>(layer, tile.sequence, tile.kv_head));
  } else if (cache.bits() == 16) {
    run(kernels_.attend_f16, cache.head<f16>(layer, tile.sequence, tile.kv_head));
  } else {
    run(kernels_.attend_codes, cache.codes(layer, tile.sequence, tile.kv_head));
  }
}

void CpuAttention::attend_whole(const CpuKvCache& cache, int64_t layer, int64_t index,
                                const void* next_keys, Scratch& s, cpu::MutableRows out) const {
  const Tile& tile = tiles_[size_t(index)];
  const int64_t dim = config_.head_dim;
  std::vector<cpu::AttentionPart> totals(s.parts.size());
  for (size_t i = 0; i < totals.size(); ++i) {
    const int64_t row = tile.row + int64_t(i) / group();
    const int64_t head = tile.kv_head * group() + int64_t(i) % group();
    totals[i] = {0, 0, out.row(row) + head * dim};
  }
  for (int64_t stretch = tile.first_stretch(); stretch < tile.end_stretch(); ++stretch) {
    const bool last = stretch + 1 == tile.end_stretch();
    attend(cache, layer, {index, stretch},
           last ? next_keys : first_keys(cache, layer, {index, stretch + 1}), s);
    for (size_t i = 0; i < totals.size(); ++i) cpu::merge(totals[i], s.parts[i], dim);
  }
  for (const cpu::AttentionPart& t : totals) {
    for (int64_t d = 0; d < dim; ++d) t.out[d] /= t.sum;
  }
}

void CpuAttention::attend_piece(const CpuKvCache& cache, int64_t layer, const Piece& piece,
                                const void* next_keys, Scratch& s) {
  const Tile& tile = tiles_[size_t(piece.tile)];
  const auto queries = int64_t(s.parts.size());
  const int64_t first = tile.first_part + (piece.stretch - tile.first_stretch()) * queries;
  for (int64_t i = 0; i < queries; ++i) {
    s.parts[size_t(i)].out = part_out_.data() + (first + i) * config_.head_dim;
  }
  attend(cache, layer, piece, next_keys, s);
  std::copy(s.parts.begin(), s.parts.end(), parts_.begin() + first);
}

void CpuAttention::merge_pieces(int64_t index, cpu::MutableRows out) const {
  const Tile& tile = tiles_[size_t(index)];
  const int64_t dim = config_.head_dim, queries = tile.tokens * group();
  const int64_t stretches = tile.end_stretch() - tile.first_stretch();
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t row = tile.row + i / group(), head = tile.kv_head * group() + i % group();
    cpu::AttentionPart total{0, 0, out.row(row) + head * dim};
    for (int64_t s = 0; s < stretches; ++s) {
      cpu::merge(total, parts_[size_t(tile.first_part + s * queries + i)], dim);
    }
    for (int64_t d = 0; d < dim; ++d) total.out[d] /= total.sum;
  }
}

void CpuAttention::attend_split(const CpuKvCache& cache, int64_t layer, const Batch& batch,
                                cpu::Rows qkv, cpu::MutableRows out) {
  pieces_.clear();
  unfinished_.clear();
  int64_t parts = 0;
  for (size_t t = 0; t < tiles_.size(); ++t) {
    Tile& tile = tiles_[t];
    tile.first_part = parts;
    for (int64_t s = tile.first_stretch(); s < tile.end_stretch(); ++s) {
      pieces_.push_back({int64_t(t), s});
    }
    unfinished_.push_back(tile.end_stretch() - tile.first_stretch());
    parts += unfinished_.back() * tile.tokens * group();
  }
  parts_.resize(size_t(parts));
  part_out_.resize(size_t(parts * config_.head_dim));
  for (Scratch& s : scratch_) s.tile = -1;
  const auto count = int64_t(pieces_.size());
  pool_.parallel_for(count, 1, [&](int64_t begin, int64_t end, int thread) {
    Scratch& s = scratch_[size_t(thread)];
    for (int64_t p = begin; p < end; ++p) {
      const Piece& piece = pieces_[size_t(p)];
      if (piece.tile != s.tile) load_queries(piece.tile, batch, qkv, s);
      const bool more = p + 1 < count;  // most likely this thread's
      attend_piece(cache, layer, piece,
                   more ? first_keys(cache, layer, pieces_[size_t(p + 1)]) : nullptr, s);
      std::atomic_ref unfinished(unfinished_[size_t(piece.tile)]);
      if (unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) merge_pieces(piece.tile, out);
    }
  });
}

void CpuAttention::run(const CpuKvCache& cache, int64_t layer, const float* alibi,
                       const Batch& batch, std::span<const int64_t> runs, cpu::Rows qkv,
                       cpu::MutableRows out) {
  alibi_ = alibi;
  scratch_.resize(size_t(pool_.threads()));
  make_tiles(batch, runs);
  if (int64_t(tiles_.size()) < 4 * pool_.threads()) {
    return attend_split(cache, layer, batch, qkv, out);
  }
  const auto count = int64_t(tiles_.size());
  pool_.parallel_for(count, 1, [&](int64_t begin, int64_t end, int thread) {
    Scratch& s = scratch_[size_t(thread)];
    for (int64_t t = begin; t < end; ++t) {
      load_queries(t, batch, qkv, s);
      const void* next_keys = nullptr;
      if (t + 1 < count) {
        next_keys = first_keys(cache, layer, {t + 1, tiles_[size_t(t + 1)].first_stretch()});
      }
      attend_whole(cache, layer, t, next_keys, s, out);
    }
  });
}

}  // namespace oq
