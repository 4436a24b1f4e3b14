#include "runtime/backend/cpu/attention.h"

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/kv_grid.h"
#include "kernels/reference/ops.h"
#include "tests/kernels/compare.h"

using namespace oq;
using namespace oq::test;

namespace {

/// One layer's cache of two sequences, and what the reference sees of it.
struct Filled {
  Plan plan;
  std::vector<float> k, v;  ///< [sequence][position][kv_head][head_dim]

  Filled(int64_t heads, int64_t kv_heads, int64_t positions, int64_t window) {
    plan.config.blocks = 1;
    plan.config.heads = heads;
    plan.config.kv_heads = kv_heads;
    plan.config.head_dim = 20;
    plan.config.window = window;
    plan.config.context = plan.context = positions;
    plan.sequences = 2;
    plan.kv_bits = 32;
    Rng rng(uint32_t(heads * 100 + positions));
    k = random_floats(rng, size_t(2 * positions * width()), 0.2f);
    v = random_floats(rng, size_t(2 * positions * width()));
  }
  int64_t width() const { return plan.config.kv_heads * plan.config.head_dim; }
  const float* at(const std::vector<float>& x, int64_t sequence, int64_t position) const {
    return x.data() + (sequence * plan.context + position) * width();
  }
  CpuKvCache cache() const {
    CpuKvCache c(plan);
    for (int64_t s = 0; s < 2; ++s) {
      for (int64_t p = 0; p < plan.context; ++p) c.append(0, s, p, at(k, s, p), at(v, s, p));
    }
    return c;
  }
};

struct Rows {
  std::vector<int32_t> tokens, positions, sequences;
  std::vector<int64_t> runs = {0};

  /// n rows of a sequence from a position on.
  void add(int32_t sequence, int32_t position, int n) {
    for (int i = 0; i < n; ++i) {
      tokens.push_back(0);
      positions.push_back(position + i);
      sequences.push_back(sequence);
    }
    runs.push_back(int64_t(tokens.size()));
  }
};

std::vector<float> run(const Filled& filled, const Rows& rows, const std::vector<float>& q,
                       int threads) {
  ThreadPool pool(threads);
  CpuAttention attention(pool, cpu::best_kernels(), filled.plan.config);
  const CpuKvCache cache = filled.cache();
  const int64_t width = filled.plan.config.heads * filled.plan.config.head_dim;
  std::vector<float> y(q.size());
  const Batch batch = {rows.tokens, rows.positions, rows.sequences, {}};
  attention.run(cache, 0, nullptr, batch, rows.runs, {q.data(), width}, {y.data(), width});
  return y;
}

std::vector<float> reference_of(const Filled& filled, const Rows& rows,
                                const std::vector<float>& q) {
  const ModelConfig& c = filled.plan.config;
  const auto dim = size_t(c.head_dim);
  std::vector<float> y(q.size());
  for (size_t r = 0; r < rows.tokens.size(); ++r) {
    const int64_t end = rows.positions[r] + 1;
    const int64_t first = c.window > 0 ? std::max<int64_t>(0, end - c.window) : 0;
    for (int64_t h = 0; h < c.heads; ++h) {
      const int64_t kv_head = h / (c.heads / c.kv_heads);
      std::vector<float> k, v;
      for (int64_t p = first; p < end; ++p) {
        const float* key = filled.at(filled.k, rows.sequences[r], p) + kv_head * c.head_dim;
        const float* value = filled.at(filled.v, rows.sequences[r], p) + kv_head * c.head_dim;
        k.insert(k.end(), key, key + dim);
        v.insert(v.end(), value, value + dim);
      }
      const size_t at = (r * size_t(c.heads) + size_t(h)) * dim;
      reference::attention(std::span(q).subspan(at, dim), k, v, {}, end - first,
                           std::span(y).subspan(at, dim));
    }
  }
  return y;
}

/// The cache's grids and codes of every position and head against KvGrid of `range` neighbours.
void check_codes(const Filled& filled, int64_t range) {
  const int64_t dim = filled.plan.config.head_dim;
  const CpuKvCache cache = filled.cache();
  for (int64_t p = 0; p < filled.plan.context; ++p) {
    for (int64_t h = 0; h < filled.plan.config.kv_heads; ++h) {
      const cpu::KvCodes codes = cache.codes(0, 1, h);
      const int64_t first = h * dim / range * range;
      const float *k = filled.at(filled.k, 1, p), *v = filled.at(filled.v, 1, p);
      const KvGrid keys = KvGrid::of({k + first, size_t(range)}, cache.bits());
      const KvGrid values = KvGrid::of({v + first, size_t(range)}, cache.bits());
      CHECK(codes.key_scales[p].bits == keys.scale.bits);
      CHECK(codes.key_lows[p].bits == keys.low.bits);
      CHECK(codes.value_scales[p].bits == values.scale.bits);
      CHECK(codes.value_lows[p].bits == values.low.bits);
      const uint8_t* tile = codes.keys + p / cpu::kKeyTile * dim * cpu::kKeyTile;
      for (int64_t d = 0; d < dim; ++d) {
        CHECK(tile[d * cpu::kKeyTile + p % cpu::kKeyTile] == keys.code(k[h * dim + d]));
        CHECK(codes.values[p * dim + d] == values.code(v[h * dim + d]));
      }
    }
  }
}

}  // namespace

TEST_CASE("a cache of codes has a grid per head, or the same for all heads of a token") {
  for (const int bits : {4, 8}) {
    Filled filled(6, 3, 11, 0);
    filled.plan.kv_bits = bits;
    check_codes(filled, 20);
    filled.plan.scheme.heads_share_range = true;
    check_codes(filled, 60);
  }
}

TEST_CASE("attention of a batch equals the reference, whatever the number of threads") {
  struct Shape {
    int64_t heads, kv_heads, window;
  };
  for (const auto [heads, kv_heads, window] :
       {Shape{1, 1, 0}, Shape{6, 2, 0}, Shape{8, 1, 300}, Shape{12, 12, 0}}) {
    const Filled filled(heads, kv_heads, 1100, window);
    Rows one, some;  // few tiles, cut into pieces; and more of them
    one.add(1, 1050, 1);
    some.add(0, 1000, 30);
    some.add(1, 1050, 1);
    some.add(0, 3, 1);
    for (const Rows& rows : {one, some}) {
      Rng rng(3);
      const size_t n = rows.tokens.size() * size_t(heads * filled.plan.config.head_dim);
      const auto q = random_floats(rng, n, 0.0f, 1.5f);
      const std::vector<float> y = run(filled, rows, q, 1);
      CHECK_CLOSE(y, reference_of(filled, rows, q), 1e-5, 1e-4, 1e-10);
      for (int threads : {2, 3, 7}) CHECK(run(filled, rows, q, threads) == y);
    }
  }
}

TEST_CASE("attention of a row does not depend on the rows beside it") {
  const Filled filled(6, 2, 1100, 0);
  Rows one, many;
  one.add(1, 1050, 1);
  for (int32_t position : {1090, 700, 5}) many.add(0, position, 3);
  many.add(1, 1050, 1);
  const auto width = size_t(6 * filled.plan.config.head_dim);
  Rng rng(4);
  const auto q = random_floats(rng, many.tokens.size() * width, 0.0f, 1.5f);
  const std::vector<float> last(q.end() - int64_t(width), q.end());
  const std::vector<float> beside = run(filled, many, q, 2);
  CHECK(run(filled, one, last, 2) ==
        std::vector<float>(beside.end() - int64_t(width), beside.end()));
}
