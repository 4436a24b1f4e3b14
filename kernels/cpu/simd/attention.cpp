/// Softmax attention over a stretch of cached positions.
///
/// Regime: decode (the queries of one KV head's group) and prefill (those of several tokens).
/// Layout: keys in tiles of 8 positions, so that 8 scores are one vector and no horizontal sum is
/// needed; values row by row. Work split: the caller gives stretches and merges what they leave
/// behind. Each key and value is converted once per tile of up to 4 queries (8 with twice the
/// registers). Every score adds up over dimensions in ascending order and every output over
/// positions, whatever the tile. Codes are multiplied as they are: their grids, one per position,
/// go into the finished scores and into the weights of the values. Bound: the cache's bytes at one
/// query, FMA from about 4 on.

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "kernels/cpu/simd/simd.h"

namespace oq::cpu::OQ_ISA {
namespace {

constexpr int kMostQueries = kRegisters / 4;  ///< that share one pass over keys and values

/// scores[i][t - begin] = q_i k_t for kTiles whole tiles of keys from t = begin on.
template <class T, int kQueries, int kTiles>
inline __attribute__((always_inline)) void score(const float* q, int64_t head_dim, const T* keys,
                                                 float* scores, int64_t stride) {
  Floats acc[kTiles][kQueries];
  for (auto& a : acc) std::fill(a, a + kQueries, Floats{});
  for (int64_t d = 0; d < head_dim; ++d) {
    Floats key[kTiles];
#pragma GCC unroll 4
    for (int j = 0; j < kTiles; ++j) key[j] = load_floats(keys + (j * head_dim + d) * kKeyTile);
#pragma GCC unroll 8
    for (int i = 0; i < kQueries; ++i) {
      const Floats x = all(q[i * head_dim + d]);
#pragma GCC unroll 4
      for (int j = 0; j < kTiles; ++j) acc[j][i] = fmadd(key[j], x, acc[j][i]);
    }
  }
  for (int j = 0; j < kTiles; ++j) {
    for (int i = 0; i < kQueries; ++i) {
      store(scores + i * stride + j * kKeyTile, acc[j][i]);
    }
  }
}

/// The same for [begin, end), while the values of these positions are on their way. Several tiles
/// at once, because a sum waits 4 cycles for the one before it, in which 8 others can be started.
template <class T, int kQueries>
void score_tiles(const float* q, int64_t head_dim, const T* keys, const T* values, int64_t begin,
                 int64_t end, float* scores, int64_t stride) {
  constexpr int kTiles = kQueries == 1 ? 4 : 2;
  const int64_t bytes = kTiles * kKeyTile * head_dim * int64_t(sizeof(T));
  int64_t t = begin;
  for (; t + (kTiles - 1) * kKeyTile < end; t += kTiles * kKeyTile) {
    prefetch_lines<1>(keys + t * head_dim, std::max<int64_t>(bytes, 4096), bytes);
    prefetch_lines<2>(values + t * head_dim, 0, bytes);
    score<T, kQueries, kTiles>(q, head_dim, keys + t * head_dim, scores + t - begin, stride);
  }
  for (; t < end; t += kKeyTile) {
    score<T, kQueries, 1>(q, head_dim, keys + t * head_dim, scores + t - begin, stride);
  }
}

/// Scores become exponentials relative to the largest; those outside [first, live) become 0.
/// PRECOND: first < live.
void softmax(float* scores, const float* bias, int64_t first, int64_t live, int64_t stride,
             AttentionPart& part) {
  if (bias != nullptr) {
    for (int64_t t = first; t < live; ++t) scores[t] += bias[t];
  }
  std::fill(scores, scores + first, -std::numeric_limits<float>::infinity());
  std::fill(scores + live, scores + stride, -std::numeric_limits<float>::infinity());
  Floats top = all(-std::numeric_limits<float>::infinity());
  for (int64_t t = 0; t < stride; t += 8) top = max(load_floats(scores + t), top);
  part.top = max_lane(top);
  Floats sum = Floats{};
  for (int64_t t = 0; t < stride; t += 8) {
    const Floats s = load_floats(scores + t) - all(part.top);
    const Floats p = exp(s);
    store(scores + t, p);
    sum = sum + p;
  }
  part.sum = sum_lanes(sum);
}

/// out[i][d .. d + 8 kVectors) = sum over t of p[i][t] v[t][d ..]. With the first dimensions come
/// the keys of the stretch that is next, so that memory is not idle meanwhile.
template <class T, int kQueries, int kVectors>
void weigh_values(const float* p, int64_t stride, const T* values, int64_t head_dim, int64_t n,
                  int64_t d, const T* next_keys, AttentionPart* parts) {
  Floats acc[kQueries][kVectors];
  for (auto& a : acc) std::fill(a, a + kVectors, Floats{});
  for (int64_t t = 0; t < n; ++t) {
    if (d == 0) {
      const int64_t bytes = head_dim * int64_t(sizeof(T));
      prefetch_lines<2>(next_keys, t * bytes, bytes);
    }
    Floats v[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) v[j] = load_floats(values + t * head_dim + d + 8 * j);
#pragma GCC unroll 8
    for (int i = 0; i < kQueries; ++i) {
      const Floats weight = all(p[i * stride + t]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) acc[i][j] = fmadd(weight, v[j], acc[i][j]);
    }
  }
  for (int i = 0; i < kQueries; ++i) {
    for (int j = 0; j < kVectors; ++j) store(parts[i].out + d + 8 * j, acc[i][j]);
  }
}

/// Vectors of values that meet all queries at once: at least 8 sums that do not wait for each
/// other.
constexpr int vectors_of(int queries) {
  if (queries == 1) return 8;
  return kMostQueries == 8 ? (queries == 8 ? 2 : 4) : (queries == 2 ? 4 : 2);
}

/// Scores of codes become scores of keys: q (scale code + low) = scale (q code) + low sum(q).
void scale_scores(const KvCodes& kv, const float* q, int64_t head_dim, int64_t begin, int64_t n,
                  float* scores) {
  float q_sum = 0;
  for (int64_t d = 0; d < head_dim; ++d) q_sum += q[d];
  for (int64_t t = 0; t < n; t += 8) {
    const Floats low = load_floats(kv.key_lows + begin + t) * all(q_sum);
    const Floats scale = load_floats(kv.key_scales + begin + t);
    store(scores + t, fmadd(scale, load_floats(scores + t), low));
  }
}

/// Weights of values become weights of their codes. Returns what the lows come to, the same in
/// every dimension: sum p (scale code + low) = sum (p scale) code + sum p low.
float scale_weights(const KvCodes& kv, int64_t begin, int64_t n, float* p) {
  Floats lows = Floats{};
  for (int64_t t = 0; t < n; t += 8) {
    const Floats weight = load_floats(p + t);
    lows = fmadd(weight, load_floats(kv.value_lows + begin + t), lows);
    store(p + t, weight * load_floats(kv.value_scales + begin + t));
  }
  return sum_lanes(lows);
}

template <class Cache, int kQueries>
void attend_tile(const float* q, int64_t head_dim, const Cache& kv, int64_t begin, int64_t end,
                 const Sight* sights, float* scores, AttentionPart* parts) {
  using T = std::remove_cvref_t<decltype(*kv.keys)>;
  constexpr bool kOfCodes = std::is_same_v<Cache, KvCodes>;
  constexpr int kVectors = vectors_of(kQueries);
  const int64_t stride = (end - begin + kKeyTile - 1) / kKeyTile * kKeyTile;
  score_tiles<T, kQueries>(q, head_dim, kv.keys, kv.values, begin, end, scores, stride);
  int64_t seen = 0;
  float lows[kQueries] = {};
  for (int i = 0; i < kQueries; ++i) {
    const Sight& sight = sights[i];
    float* const mine = scores + i * stride;
    const int64_t first = std::clamp<int64_t>(sight.first - begin, 0, end - begin);
    const int64_t live = std::clamp<int64_t>(sight.end - begin, 0, end - begin);
    if (first < live) {
      const float* bias = sight.bias == nullptr ? nullptr : sight.bias + begin;
      if constexpr (kOfCodes) scale_scores(kv, q + i * head_dim, head_dim, begin, stride, mine);
      softmax(mine, bias, first, live, stride, parts[i]);
      if constexpr (kOfCodes) lows[i] = scale_weights(kv, begin, stride, mine);
      seen = std::max(seen, live);
    } else {
      std::fill_n(mine, stride, 0.0f);
      parts[i].top = -std::numeric_limits<float>::infinity();
      parts[i].sum = 0;
    }
  }
  const T* values = kv.values + begin * head_dim;
  const T* next_keys = kv.keys + (begin + stride) * head_dim;
  int64_t d = 0;
  for (; d + 8 * kVectors <= head_dim; d += 8 * kVectors) {
    weigh_values<T, kQueries, kVectors>(scores, stride, values, head_dim, seen, d, next_keys,
                                        parts);
  }
  for (; d + 8 <= head_dim; d += 8) {
    weigh_values<T, kQueries, 1>(scores, stride, values, head_dim, seen, d, next_keys, parts);
  }
  for (; d < head_dim; ++d) {
    for (int i = 0; i < kQueries; ++i) {
      float sum = 0;
      for (int64_t t = 0; t < seen; ++t) {
        sum = std::fma(scores[i * stride + t], to_float(values[t * head_dim + d]), sum);
      }
      parts[i].out[d] = sum;
    }
  }
  for (int i = 0; kOfCodes && i < kQueries; ++i) {
    for (d = 0; d < head_dim; ++d) parts[i].out[d] += lows[i];
  }
}

template <class Cache>
void attend(const float* q, int64_t queries, int64_t head_dim, const Cache& kv, int64_t begin,
            int64_t end, const Sight* sights, float* scores, AttentionPart* parts) {
  const auto some = [&]<int kQueries>(std::integral_constant<int, kQueries>) {
    for (; queries >= kQueries; queries -= kQueries) {
      attend_tile<Cache, kQueries>(q, head_dim, kv, begin, end, sights, scores, parts);
      q += kQueries * head_dim;
      sights += kQueries;
      parts += kQueries;
    }
  };
  some(std::integral_constant<int, kMostQueries>());
  if constexpr (kMostQueries > 4) some(std::integral_constant<int, 4>());
  some(std::integral_constant<int, 3>());
  some(std::integral_constant<int, 2>());
  some(std::integral_constant<int, 1>());
}

}  // namespace

void attend_f16(const float* q, int64_t queries, int64_t head_dim, KvView<f16> kv, int64_t begin,
                int64_t end, const Sight* sights, float* scores, AttentionPart* parts) {
  attend(q, queries, head_dim, kv, begin, end, sights, scores, parts);
}

void attend_f32(const float* q, int64_t queries, int64_t head_dim, KvView<float> kv, int64_t begin,
                int64_t end, const Sight* sights, float* scores, AttentionPart* parts) {
  attend(q, queries, head_dim, kv, begin, end, sights, scores, parts);
}

void attend_codes(const float* q, int64_t queries, int64_t head_dim, KvCodes kv, int64_t begin,
                  int64_t end, const Sight* sights, float* scores, AttentionPart* parts) {
  attend(q, queries, head_dim, kv, begin, end, sights, scores, parts);
}

}  // namespace oq::cpu::OQ_ISA
