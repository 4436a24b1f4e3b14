#include "tools/calibrate/learn/attention.h"

#include <algorithm>
#include <cmath>

#include "tools/calibrate/learn/product.h"
#include "tools/calibrate/learn/vector_math.h"
#include "tools/calibrate/solver/linalg.h"

namespace oq::calibrate {

void Heads::resize(const ModelConfig& c, int64_t tokens) {
  q.resize(size_t(tokens * c.q_width()));
  k.resize(size_t(tokens * c.kv_width()));
  v.resize(size_t(tokens * c.kv_width()));
}

/// The first key that a query sees.
int64_t AttentionGraph::first_seen(int64_t position) const {
  if (sight_ == Sight::alone) return position;
  return c_.window > 0 ? std::max<int64_t>(0, position + 1 - c_.window) : 0;
}

AttentionGraph::Tile AttentionGraph::tile(int64_t head, int64_t index, int64_t tokens) const {
  const int64_t first = index * kTile, n = std::min(kTile, tokens - first);
  const int64_t key = first_seen(first);
  return {.head = head, .first = first, .n = n, .key = key, .keys = first + n - key};
}

/// Gives `fill` to the keys that a query does not see.
void AttentionGraph::mask(const Tile& t, int64_t query, float* row, float fill) const {
  const int64_t position = t.first + query;
  std::fill(row, row + (first_seen(position) - t.key), fill);
  std::fill(row + (position + 1 - t.key), row + t.keys, fill);
}

/// s [n][keys] = q k^T / sqrt(head_dim) + bias.
void AttentionGraph::scores(const Tile& t, const Heads& x, float* s) const {
  const int64_t kv = t.head / (c_.heads / c_.kv_heads);
  multiply({.m = t.n,
            .n = t.keys,
            .k = c_.head_dim,
            .a = {x.q.data() + t.first * c_.q_width() + t.head * c_.head_dim, c_.q_width()},
            .b = {x.k.data() + t.key * c_.kv_width() + kv * c_.head_dim, c_.kv_width(), true},
            .c = s,
            .c_stride = t.keys});
  const float factor = 1.0f / std::sqrt(float(c_.head_dim));
  const float* bias = alibi_.empty() ? nullptr : alibi_.data() + t.head * c_.context + t.key;
  for (int64_t i = 0; i < t.n; ++i) {
    float* row = s + i * t.keys;
    if (bias == nullptr) {
      for (int64_t j = 0; j < t.keys; ++j) row[j] *= factor;
    } else {
      for (int64_t j = 0; j < t.keys; ++j) row[j] = row[j] * factor + bias[j];
    }
  }
}

void AttentionGraph::forward_tile(const Tile& t, const Heads& x, float* s, float* out) {
  const int64_t tokens = int64_t(x.q.size()) / c_.q_width();
  const int64_t kv = t.head / (c_.heads / c_.kv_heads);
  scores(t, x, s);
  for (int64_t i = 0; i < t.n; ++i) {
    float* row = s + i * t.keys;
    mask(t, i, row, -INFINITY);
    const float top = *std::max_element(row, row + t.keys);
    for (int64_t j = 0; j < t.keys; ++j) row[j] = fast_exp(row[j] - top);
    mask(t, i, row, 0);
    const float sum = lane_sum(t.keys, [&](int64_t j) { return row[j]; });
    for (int64_t j = 0; j < t.keys; ++j) row[j] /= sum;
    log_sums_[size_t(t.head * tokens + t.first + i)] = top + std::log(sum);
  }
  multiply({.m = t.n,
            .n = c_.head_dim,
            .k = t.keys,
            .a = {s, t.keys},
            .b = {x.v.data() + t.key * c_.kv_width() + kv * c_.head_dim, c_.kv_width()},
            .c = out + t.first * c_.q_width() + t.head * c_.head_dim,
            .c_stride = c_.q_width()});
}

/// map += P / heads.
void AttentionGraph::add_to_map(const Tile& t, const float* p, int64_t tokens, float* map) const {
  const float share = 1.0f / float(c_.heads);
  for (int64_t i = 0; i < t.n; ++i) {
    float* to = map + (t.first + i) * tokens + t.key;
    for (int64_t j = 0; j < t.keys; ++j) to[j] += share * p[i * t.keys + j];
  }
}

void AttentionGraph::forward(ThreadPool& pool, const Heads& x, int64_t tokens, float* out,
                             float* map, Sight sight) {
  const BlasThreads single(1);
  sight_ = sight;
  const int64_t tiles = (tokens + kTile - 1) / kTile, size = 2 * kTile * tokens;
  log_sums_.resize(size_t(c_.heads * tokens));
  scratch_.resize(size_t(pool.threads() * size));
  if (map != nullptr) std::fill_n(map, tokens * tokens, 0.0f);
  // Heads of a tile in order, one after another: they meet in the map.
  pool.parallel_for(tiles, 1, [&](int64_t begin, int64_t end, int thread) {
    float* s = scratch_.data() + thread * size;
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t h = 0; h < c_.heads; ++h) {
        const Tile t = tile(h, tiles - 1 - i, tokens);  // the long ones first
        forward_tile(t, x, s, out);
        if (map != nullptr) add_to_map(t, s, tokens, map);
      }
    }
  });
}

/// With P the softmax of the scores, and dP = dO V^T in `dp`:
///   dS = P (dP - D) / sqrt(head_dim),  D = sum P dP = sum_d dO O of each query.
/// The map adds its own gradient to dP. `p` takes scores and leaves P; `dp` leaves dS.
void AttentionGraph::score_gradients(const Tile& t, int64_t tokens, const float* out,
                                     const float* d_out, const float* d_map, float* p,
                                     float* dp) const {
  const int64_t dim = c_.head_dim;
  const float factor = 1.0f / std::sqrt(float(dim)), share = 1.0f / float(c_.heads);
  for (int64_t i = 0; i < t.n; ++i, p += t.keys, dp += t.keys) {
    const float log_sum = log_sums_[size_t(t.head * tokens + t.first + i)];
    for (int64_t j = 0; j < t.keys; ++j) p[j] = fast_exp(p[j] - log_sum);
    mask(t, i, p, 0);
    const int64_t at = (t.first + i) * c_.q_width() + t.head * dim;
    float dot = lane_sum(dim, [&](int64_t k) { return d_out[at + k] * out[at + k]; });
    if (d_map != nullptr) {
      const float* d = d_map + (t.first + i) * tokens + t.key;
      dot += share * lane_sum(t.keys, [&](int64_t j) { return p[j] * d[j]; });
      for (int64_t j = 0; j < t.keys; ++j) dp[j] += share * d[j];
    }
    for (int64_t j = 0; j < t.keys; ++j) dp[j] = p[j] * (dp[j] - dot) * factor;
  }
}

/// dV += P^T dO,  dQ = dS K,  dK += dS^T Q.
void AttentionGraph::backward_tile(const Tile& t, const Heads& x, const float* out,
                                   const float* d_out, const float* d_map, float* s, Heads& d) {
  const int64_t tokens = int64_t(x.q.size()) / c_.q_width(), dim = c_.head_dim;
  const int64_t kv = t.head / (c_.heads / c_.kv_heads);
  const int64_t query_at = t.first * c_.q_width() + t.head * dim;
  const int64_t key_at = t.key * c_.kv_width() + kv * dim;
  const int64_t sum_at = (t.head * tokens + t.key) * dim;
  float* dp = s + kTile * tokens;
  scores(t, x, s);
  multiply({.m = t.n,
            .n = t.keys,
            .k = dim,
            .a = {d_out + query_at, c_.q_width()},
            .b = {x.v.data() + key_at, c_.kv_width(), true},
            .c = dp,
            .c_stride = t.keys});
  score_gradients(t, tokens, out, d_out, d_map, s, dp);
  multiply({.m = t.keys,
            .n = dim,
            .k = t.n,
            .a = {s, t.keys, true},
            .b = {d_out + query_at, c_.q_width()},
            .c = dv_.data() + sum_at,
            .c_stride = dim,
            .add = true});
  multiply({.m = t.n,
            .n = dim,
            .k = t.keys,
            .a = {dp, t.keys},
            .b = {x.k.data() + key_at, c_.kv_width()},
            .c = d.q.data() + query_at,
            .c_stride = c_.q_width()});
  multiply({.m = t.keys,
            .n = dim,
            .k = t.n,
            .a = {dp, t.keys, true},
            .b = {x.q.data() + query_at, c_.q_width()},
            .c = dk_.data() + sum_at,
            .c_stride = dim,
            .add = true});
}

void AttentionGraph::backward(ThreadPool& pool, const Heads& x, int64_t tokens, const float* out,
                              const float* d_out, const float* d_map, Heads& d) {
  const BlasThreads single(1);
  const int64_t tiles = (tokens + kTile - 1) / kTile, size = 2 * kTile * tokens;
  const int64_t dim = c_.head_dim, group = c_.heads / c_.kv_heads;
  d.resize(c_, tokens);
  scratch_.resize(size_t(pool.threads() * size));
  dk_.assign(size_t(c_.heads * tokens * dim), 0);
  dv_.assign(dk_.size(), 0);
  pool.parallel_for(c_.heads, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t h = begin; h < end; ++h) {
      for (int64_t i = 0; i < tiles; ++i) {
        backward_tile(tile(h, i, tokens), x, out, d_out, d_map, scratch_.data() + thread * size, d);
      }
    }
  });
  std::fill(d.k.begin(), d.k.end(), 0.0f);
  std::fill(d.v.begin(), d.v.end(), 0.0f);
  pool.parallel_for(tokens, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < c_.heads; ++h) {
        const int64_t to = t * c_.kv_width() + h / group * dim, from = (h * tokens + t) * dim;
        for (int64_t i = 0; i < dim; ++i) d.k[size_t(to + i)] += dk_[size_t(from + i)];
        for (int64_t i = 0; i < dim; ++i) d.v[size_t(to + i)] += dv_[size_t(from + i)];
      }
    }
  });
}

}  // namespace oq::calibrate
