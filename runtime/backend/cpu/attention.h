#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "runtime/backend/cpu/kv_cache.h"

namespace oq {

/// Attention of a batch's rows over the KV cache, on the thread pool.
///
/// Work is cut into tiles of queries that share one KV head, and, when there are few of those, into
/// stretches of positions too, which whoever finishes a tile's last one merges. Stretches are
/// always the same and always merged in order, so the result does not depend on the number of
/// threads nor on the rows of the batch.
class CpuAttention {
 public:
  CpuAttention(ThreadPool& pool, const cpu::Kernels& kernels, const ModelConfig& config)
      : pool_(pool), kernels_(kernels), config_(config) {}

  /// `runs` as in LinearRunner. qkv rows start with q, already rotated. `alibi` is [heads, context]
  /// or nullptr.
  void run(const CpuKvCache& cache, int64_t layer, const float* alibi, const Batch& batch,
           std::span<const int64_t> runs, cpu::Rows qkv, cpu::MutableRows out);

 private:
  static constexpr int64_t kStretch = 256;  ///< positions; scores and keys stay in the L1 and L2

  /// Queries of one KV head: `tokens` rows from `row` on, all query heads of its group.
  struct Tile {
    int64_t row, tokens, sequence, kv_head;
    int64_t first, end;  ///< positions that any of them sees
    int64_t first_part;  ///< in parts_: [stretch][query]

    int64_t first_stretch() const { return first / kStretch; }
    int64_t end_stretch() const { return (end + kStretch - 1) / kStretch; }
  };
  /// One stretch of a tile.
  struct Piece {
    int64_t tile, stretch;
  };
  struct Scratch {
    int64_t tile = -1;  ///< whose queries these are
    std::vector<float> q, scores, part_out;
    std::vector<cpu::Sight> sights;
    std::vector<cpu::AttentionPart> parts;
  };

  const void* first_keys(const CpuKvCache& cache, int64_t layer, const Piece& piece) const;
  void make_tiles(const Batch& batch, std::span<const int64_t> runs);
  void load_queries(int64_t tile, const Batch& batch, cpu::Rows qkv, Scratch& s) const;
  void attend(const CpuKvCache& cache, int64_t layer, const Piece& piece, const void* next_keys,
              Scratch& s) const;
  void attend_whole(const CpuKvCache& cache, int64_t layer, int64_t tile, const void* next_keys,
                    Scratch& s, cpu::MutableRows out) const;
  void attend_piece(const CpuKvCache& cache, int64_t layer, const Piece& piece,
                    const void* next_keys, Scratch& s);
  void merge_pieces(int64_t tile, cpu::MutableRows out) const;
  void attend_split(const CpuKvCache& cache, int64_t layer, const Batch& batch, cpu::Rows qkv,
                    cpu::MutableRows out);

  int64_t first_seen(int64_t position) const {
    return config_.window > 0 ? std::max<int64_t>(0, position + 1 - config_.window) : 0;
  }
  int64_t group() const { return config_.heads / config_.kv_heads; }

  ThreadPool& pool_;
  const cpu::Kernels& kernels_;
  const ModelConfig& config_;
  const float* alibi_ = nullptr;
  std::vector<Tile> tiles_;
  std::vector<Scratch> scratch_;     ///< per thread
  std::vector<Piece> pieces_;        ///< of all tiles, one tile after another
  std::vector<int64_t> unfinished_;  ///< pieces of each tile
  std::vector<cpu::AttentionPart> parts_;
  std::vector<float> part_out_;  ///< [part][head_dim]
};

}  // namespace oq
