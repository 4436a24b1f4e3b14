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
/// stretches of positions too. Stretches are always the same and always merged in order, so the
/// result does not depend on the number of threads nor on the rows of the batch.
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

    int64_t first_stretch() const { return first / kStretch; }
    int64_t end_stretch() const { return (end + kStretch - 1) / kStretch; }
  };
  struct Scratch {
    std::vector<float> q, scores, part_out;
    std::vector<cpu::Sight> sights;
    std::vector<cpu::AttentionPart> parts;
  };

  void make_tiles(const Batch& batch, std::span<const int64_t> runs);
  void load_queries(const Tile& tile, const Batch& batch, cpu::Rows qkv, Scratch& s) const;
  void attend(const CpuKvCache& cache, int64_t layer, const Tile& tile, int64_t stretch,
              Scratch& s) const;
  void attend_whole(const CpuKvCache& cache, int64_t layer, const Tile& tile, Scratch& s,
                    cpu::MutableRows out);
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
  std::vector<Scratch> scratch_;    ///< per thread
  std::vector<float> stretch_out_;  ///< [tile][stretch][query][head_dim]
  std::vector<cpu::AttentionPart> stretch_parts_;
};

}  // namespace oq
