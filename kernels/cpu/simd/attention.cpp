/// Softmax attention over a stretch of cached positions.
///
/// Regime: decode (the queries of one KV head's group) and prefill (those of several tokens).
/// Layout: keys in tiles of 8 positions, so that 8 scores are one vector and no horizontal sum is
/// needed; values row by row. Work split: the caller gives stretches and merges what they leave
/// behind. Each key and value is converted once per tile of up to 4 queries. Every score adds up
/// over dimensions in ascending order and every output over positions, whatever the tile. Codes are
/// multiplied as they are: their grids, one per position, go into the finished scores and into the
/// weights of the values.
///
/// Memory works at an even pace: while scores are computed a stretch's values come into the second
/// cache, line by line as keys are used up, and while those are summed the next stretch's keys. A
/// burst of prefetches would fill the core's queue of misses, and every load behind it would wait.
/// Bound: the cache's bytes up to 3 queries, FMA from about 4 on. What lost: docs/kernels.md.

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/cpu/simd/simd.h"

namespace oq::cpu::OQ_ISA {
namespace {

constexpr int kMostQueries = 4;  ///< that share one pass over keys and values

/// f(0) ... f(kCount - 1), written out before anything is optimized: an array that constants alone
/// index stays in registers. (Of loops with an unroll pragma, GCC 12 kept some sums in memory.) The
/// loops below are functions of their own, flattened, so that their pointers have registers too.
template <int kCount, class F>
inline __attribute__((always_inline)) void unrolled(F&& f) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) __attribute__((always_inline)) {
    (f(kIndex), ...);
  }
  (std::make_integer_sequence<int, kCount>());
}

/// scores[i][t] = q_i k_t for kTiles whole tiles of keys, asking for what lies at `ahead` line by
/// line: as many bytes as it reads.
template <class T, int kQueries, int kTiles>
inline __attribute__((always_inline)) void score(const float* q, int64_t head_dim, const T* keys,
                                                 float* scores, int64_t stride, const void* ahead) {
  constexpr int64_t kBytes = kTiles * kKeyTile * int64_t(sizeof(T));  // of one dimension
  Floats acc[kQueries][kTiles], key[kTiles];
  unrolled<kQueries>([&](int i) { unrolled<kTiles>([&](int j) { acc[i][j] = Floats{}; }); });
  for (int64_t d = 0; d < head_dim; ++d) {
    if (d * kBytes % 64 < kBytes) prefetch_lines<2>(ahead, d * kBytes, kBytes);  // a line once
    unrolled<kTiles>([&](int j) { key[j] = load_floats(keys + (j * head_dim + d) * kKeyTile); });
    unrolled<kQueries>([&](int i) {
      const Floats x = all(q[i * head_dim + d]);
      unrolled<kTiles>([&](int j) { acc[i][j] = fmadd(key[j], x, acc[i][j]); });
    });
  }
  unrolled<kQueries>([&](int i) {
    unrolled<kTiles>([&](int j) { store(scores + i * stride + j * kKeyTile, acc[i][j]); });
  });
}

/// Tiles of keys that meet all queries at once: a sum waits 4 cycles for the one before it, in
/// which 8 others can be started.
constexpr int tiles_of(int queries) {
  if (kRegisters == 32 || queries <= 2) return 4;
  return queries == 3 ? 3 : 2;
}

/// The same for [begin, end), while the values of these positions are on their way.
template <class T, int kQueries>
__attribute__((noinline, flatten)) void score_tiles(const float* q, int64_t head_dim, const T* keys,
                                                    const T* values, int64_t begin, int64_t end,
                                                    float* scores, int64_t stride) {
  int64_t t = begin;
  const auto some = [&]<int kTiles>(std::integral_constant<int, kTiles>) {
    constexpr int64_t kPositions = kTiles * kKeyTile;
    for (; t + kPositions - kKeyTile < end; t += kPositions) {
      score<T, kQueries, kTiles>(q, head_dim, keys + t * head_dim, scores + t - begin, stride,
                                 values + t * head_dim);
    }
  };
  some(std::integral_constant<int, tiles_of(kQueries)>());
  some(std::integral_constant<int, 2>());
  some(std::integral_constant<int, 1>());
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
  const auto some = [&]<int kVectors>(int64_t t, std::integral_constant<int, kVectors>) {
    for (; t + 8 * kVectors <= stride; t += 8 * kVectors) {
      Floats p[kVectors];
      for (int j = 0; j < kVectors; ++j) p[j] = load_floats(scores + t + 8 * j) - all(part.top);
      exp(p);
      for (int j = 0; j < kVectors; ++j) {
        store(scores + t + 8 * j, p[j]);
        sum = sum + p[j];
      }
    }
    return t;
  };
  const int64_t t = some(0, std::integral_constant<int, 4>());
  some(t, std::integral_constant<int, 1>());
  part.sum = sum_lanes(sum);
}

/// out[i][d .. d + 8 kVectors) = sum over t of p[i][t] v[t][d ..], for n positions. Over all d, as
/// many bytes of the next keys come into the second cache.
template <class T, int kQueries, int kVectors>
__attribute__((noinline, flatten)) void weigh_values(const float* p, int64_t stride,
                                                     const T* values, int64_t head_dim, int64_t n,
                                                     int64_t d, const T* next_keys,
                                                     AttentionPart* parts) {
  constexpr int64_t kBytes = 8 * kVectors * int64_t(sizeof(T));  // of one step
  Floats acc[kQueries][kVectors], v[kVectors];
  unrolled<kQueries>([&](int i) { unrolled<kVectors>([&](int j) { acc[i][j] = Floats{}; }); });
  for (int64_t t = 0; t < n; ++t) {
    prefetch_lines<2>(next_keys, d * n * int64_t(sizeof(T)) + t * kBytes, kBytes);
    unrolled<kVectors>([&](int j) { v[j] = load_floats(values + t * head_dim + d + 8 * j); });
    unrolled<kQueries>([&](int i) {
      const Floats weight = all(p[i * stride + t]);
      unrolled<kVectors>([&](int j) { acc[i][j] = fmadd(weight, v[j], acc[i][j]); });
    });
  }
  unrolled<kQueries>([&](int i) {
    unrolled<kVectors>([&](int j) { store(parts[i].out + d + 8 * j, acc[i][j]); });
  });
}

/// Vectors of values that meet all queries at once: at least 8 sums that do not wait for each
/// other.
constexpr int vectors_of(int queries) {
  if (queries == 1) return 8;
  return kRegisters == 32 || queries == 2 ? 4 : 2;
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
void attend_tile(const float* q, int64_t head_dim, const Cache& kv, Stretch stretch,
                 const Sight* sights, float* scores, AttentionPart* parts) {
  using T = std::remove_cvref_t<decltype(*kv.keys)>;
  constexpr bool kOfCodes = std::is_same_v<Cache, KvCodes>;
  constexpr int kVectors = vectors_of(kQueries);
  const auto [begin, end, after] = stretch;
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
  const T* next_keys = after != nullptr ? static_cast<const T*>(after) : values;
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
void attend(const float* q, int64_t queries, int64_t head_dim, const Cache& kv, Stretch stretch,
            const Sight* sights, float* scores, AttentionPart* parts) {
  const auto some = [&]<int kQueries>(std::integral_constant<int, kQueries>) {
    for (; queries >= kQueries; queries -= kQueries) {
      attend_tile<Cache, kQueries>(q, head_dim, kv, stretch, sights, scores, parts);
      q += kQueries * head_dim;
      sights += kQueries;
      parts += kQueries;
    }
  };
  some(std::integral_constant<int, kMostQueries>());
  some(std::integral_constant<int, 3>());
  some(std::integral_constant<int, 2>());
  some(std::integral_constant<int, 1>());
}

}  // namespace

void attend_f16(const float* q, int64_t queries, int64_t head_dim, KvView<f16> kv, Stretch stretch,
                const Sight* sights, float* scores, AttentionPart* parts) {
  attend(q, queries, head_dim, kv, stretch, sights, scores, parts);
}

void attend_f32(const float* q, int64_t queries, int64_t head_dim, KvView<float> kv,
                Stretch stretch, const Sight* sights, float* scores, AttentionPart* parts) {
  attend(q, queries, head_dim, kv, stretch, sights, scores, parts);
}

void attend_codes(const float* q, int64_t queries, int64_t head_dim, KvCodes kv, Stretch stretch,
                  const Sight* sights, float* scores, AttentionPart* parts) {
  attend(q, queries, head_dim, kv, stretch, sights, scores, parts);
}

}  // namespace oq::cpu::OQ_ISA
