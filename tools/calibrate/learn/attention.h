#pragma once

#include <vector>

#include "kernels/cpu/thread_pool.h"
#include "runtime/config.h"
#include "tools/calibrate/sight.h"

namespace oq::calibrate {

/// q, k and v of one window's tokens, or their gradients: [tokens][q_width], [tokens][kv_width].
struct Heads {
  std::vector<float> q, k, v;

  void resize(const ModelConfig& config, int64_t tokens);
};

/// Causal softmax attention of one window, forwards and backwards, with grouped queries, sliding
/// window and ALiBi as the config says. Scores exist for a tile of queries of one head at a time;
/// backwards they are computed again from the logarithms of the softmax's sums (Dao et al. 2022,
/// section 3.1). Work is cut by heads and tiles, never by the number of threads.
class AttentionGraph {
 public:
  /// `alibi` [heads][context], or empty; it must live as long as this.
  AttentionGraph(const ModelConfig& config, const std::vector<float>& alibi)
      : c_(config), alibi_(alibi) {}

  /// out [tokens][q_width]. `map`, where it is not null: [tokens][tokens], the mean of all heads'
  /// softmax, 0 where a token sees nothing.
  void forward(ThreadPool& pool, const Heads& x, int64_t tokens, float* out, float* map = nullptr,
               Sight sight = Sight::causal);

  /// Of the last `forward`, with its x and `out`: d_out, and d_map where it is not null, -> d,
  /// which is overwritten.
  void backward(ThreadPool& pool, const Heads& x, int64_t tokens, const float* out,
                const float* d_out, const float* d_map, Heads& d);

 private:
  static constexpr int64_t kTile = 64;  ///< queries

  /// Queries first .. first + n of a head, and the keys from `key` on that any of them sees.
  struct Tile {
    int64_t head, first, n, key, keys;
  };

  int64_t first_seen(int64_t position) const;
  Tile tile(int64_t head, int64_t index, int64_t tokens) const;
  void scores(const Tile& tile, const Heads& x, float* s) const;
  void mask(const Tile& tile, int64_t query, float* row, float fill) const;
  void forward_tile(const Tile& tile, const Heads& x, float* s, float* out);
  void add_to_map(const Tile& tile, const float* p, int64_t tokens, float* map) const;
  void score_gradients(const Tile& tile, int64_t tokens, const float* out, const float* d_out,
                       const float* d_map, float* p, float* dp) const;
  void backward_tile(const Tile& tile, const Heads& x, const float* out, const float* d_out,
                     const float* d_map, float* s, Heads& d);

  const ModelConfig& c_;
  const std::vector<float>& alibi_;
  Sight sight_ = Sight::causal;  ///< of the last forward
  std::vector<float> log_sums_;  ///< [heads][tokens]
  std::vector<float> scratch_;   ///< [threads][2][kTile][tokens]
  std::vector<float> dk_, dv_;   ///< [heads][tokens][head_dim], before a group's are added up
};

}  // namespace oq::calibrate
