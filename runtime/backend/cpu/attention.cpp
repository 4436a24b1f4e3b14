#include "runtime/backend/cpu/attention.h"

#include <algorithm>
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
        tiles_.push_back({row, n, batch.sequences[size_t(row)], h, first, end});
      }
    }
  }
}

void CpuAttention::load_queries(const Tile& tile, const Batch& batch, cpu::Rows qkv,
                                Scratch& s) const {
  const int64_t dim = config_.head_dim, queries = tile.tokens * group();
  const float scale = 1.0f / std::sqrt(float(dim));
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

void CpuAttention::attend(const CpuKvCache& cache, int64_t layer, const Tile& tile, int64_t stretch,
                          Scratch& s) const {
  const int64_t begin = stretch * kStretch, end = std::min(tile.end, begin + kStretch);
  const auto queries = int64_t(s.parts.size());
  const auto run = [&](auto kernel, const auto& head) {
    kernel(s.q.data(), queries, config_.head_dim, head, begin, end, s.sights.data(),
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

void CpuAttention::attend_whole(const CpuKvCache& cache, int64_t layer, const Tile& tile,
                                Scratch& s, cpu::MutableRows out) {
  const int64_t dim = config_.head_dim;
  std::vector<cpu::AttentionPart> totals(s.parts.size());
  for (size_t i = 0; i < totals.size(); ++i) {
    const int64_t row = tile.row + int64_t(i) / group();
    const int64_t head = tile.kv_head * group() + int64_t(i) % group();
    totals[i] = {0, 0, out.row(row) + head * dim};
  }
  for (int64_t stretch = tile.first_stretch(); stretch < tile.end_stretch(); ++stretch) {
    attend(cache, layer, tile, stretch, s);
    for (size_t i = 0; i < totals.size(); ++i) cpu::merge(totals[i], s.parts[i], dim);
  }
  for (const cpu::AttentionPart& t : totals) {
    for (int64_t d = 0; d < dim; ++d) t.out[d] /= t.sum;
  }
}

void CpuAttention::attend_split(const CpuKvCache& cache, int64_t layer, const Batch& batch,
                                cpu::Rows qkv, cpu::MutableRows out) {
  const int64_t dim = config_.head_dim;
  struct Piece {
    size_t tile;
    int64_t stretch, first;  ///< first of the tile's queries in stretch_parts_
  };
  std::vector<Piece> pieces;
  int64_t queries = 0;
  for (size_t t = 0; t < tiles_.size(); ++t) {
    for (int64_t s = tiles_[t].first_stretch(); s < tiles_[t].end_stretch(); ++s) {
      pieces.push_back({t, s, queries});
      queries += tiles_[t].tokens * group();
    }
  }
  stretch_out_.resize(size_t(queries * dim));
  stretch_parts_.resize(size_t(queries));
  pool_.parallel_for(int64_t(pieces.size()), 1, [&](int64_t begin, int64_t end, int thread) {
    Scratch& s = scratch_[size_t(thread)];
    for (int64_t p = begin; p < end; ++p) {
      const Piece& piece = pieces[size_t(p)];
      load_queries(tiles_[piece.tile], batch, qkv, s);
      for (size_t i = 0; i < s.parts.size(); ++i) {
        s.parts[i].out = stretch_out_.data() + (piece.first + int64_t(i)) * dim;
      }
      attend(cache, layer, tiles_[piece.tile], piece.stretch, s);
      std::copy(s.parts.begin(), s.parts.end(), stretch_parts_.begin() + piece.first);
    }
  });
  const auto merge = [&](const Piece& piece) {
    const Tile& tile = tiles_[piece.tile];
    const int64_t n = tile.tokens * group(), count = tile.end_stretch() - tile.first_stretch();
    if (piece.stretch != tile.first_stretch()) return;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = tile.row + i / group(), head = tile.kv_head * group() + i % group();
      cpu::AttentionPart total{0, 0, out.row(row) + head * dim};
      for (int64_t s = 0; s < count; ++s) {
        cpu::merge(total, stretch_parts_[size_t(piece.first + s * n + i)], dim);
      }
      for (int64_t d = 0; d < dim; ++d) total.out[d] /= total.sum;
    }
  };
  pool_.parallel_for(int64_t(pieces.size()), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t p = begin; p < end; ++p) merge(pieces[size_t(p)]);
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
  pool_.parallel_for(int64_t(tiles_.size()), 1, [&](int64_t begin, int64_t end, int thread) {
    Scratch& s = scratch_[size_t(thread)];
    for (int64_t t = begin; t < end; ++t) {
      load_queries(tiles_[size_t(t)], batch, qkv, s);
      attend_whole(cache, layer, tiles_[size_t(t)], s, out);
    }
  });
}

}  // namespace oq
