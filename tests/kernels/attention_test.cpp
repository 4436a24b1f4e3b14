#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "kernels/kv_grid.h"
#include "kernels/reference/ops.h"
#include "tests/kernels/compare.h"

using namespace oq;
using namespace oq::test;

namespace {

/// A cache of one head in the kernels' layout and in the reference's.
template <class T>
struct Cache {
  std::vector<T> keys, values;
  std::vector<float> plain_keys, plain_values;

  cpu::KvView<T> view() const { return {keys.data(), values.data()}; }

  Cache(Rng& rng, int64_t positions, int64_t dim)
      : keys(size_t((positions + 7) / 8 * 8 * dim)), values(size_t(positions * dim)) {
    plain_keys = random_floats(rng, size_t(positions * dim), 0.2f);
    plain_values = random_floats(rng, size_t(positions * dim), 1.0f);
    const auto stored = [](float& v) {
      if constexpr (std::is_same_v<T, float>) return v;
      const f16 h = to_f16(v);
      v = to_float(h);
      if constexpr (!std::is_same_v<T, float>) return h;
    };
    for (int64_t t = 0; t < positions; ++t) {
      for (int64_t d = 0; d < dim; ++d) {
        const auto i = size_t(t * dim + d);
        keys[size_t(t / 8 * dim * 8 + d * 8 + t % 8)] = stored(plain_keys[i]);
        values[i] = stored(plain_values[i]);
      }
    }
  }
};

/// The same of codes of `kBits` bits; the reference's keys and values are what they stand for.
template <int kBits>
struct CodeCache {
  std::vector<uint8_t> keys, values;
  std::vector<f16> grids[4];
  std::vector<float> plain_keys, plain_values;

  cpu::KvCodes view() const {
    return {{keys.data(), values.data()},
            grids[0].data(),
            grids[1].data(),
            grids[2].data(),
            grids[3].data()};
  }

  CodeCache(Rng& rng, int64_t positions, int64_t dim) {
    const int64_t whole = (positions + 7) / 8 * 8;
    keys.resize(size_t(whole * dim));
    values.resize(size_t(positions * dim));
    for (auto& g : grids) g.resize(size_t(whole));
    plain_keys = random_floats(rng, size_t(positions * dim), 0.2f);
    plain_values = random_floats(rng, size_t(positions * dim), 1.0f);
    for (int64_t t = 0; t < positions; ++t) {
      const std::span<float> k(plain_keys.data() + t * dim, size_t(dim));
      const std::span<float> v(plain_values.data() + t * dim, size_t(dim));
      const KvGrid of_keys = KvGrid::of(k, kBits), of_values = KvGrid::of(v, kBits);
      for (int64_t d = 0; d < dim; ++d) {
        keys[size_t(t / 8 * dim * 8 + d * 8 + t % 8)] = of_keys.code(k[size_t(d)]);
        values[size_t(t * dim + d)] = of_values.code(v[size_t(d)]);
      }
      const f16 grid[] = {of_keys.scale, of_keys.low, of_values.scale, of_values.low};
      for (size_t i = 0; i < 4; ++i) grids[i][size_t(t)] = grid[i];
      reference::fake_quantize_kv(k, kBits);
      reference::fake_quantize_kv(v, kBits);
    }
  }
};

template <class Cache, class Attend>
void check_attention(Attend attend, int64_t positions, int64_t dim, int64_t queries,
                     int64_t chunk) {
  Rng rng(uint32_t(positions * 7 + dim));
  const Cache cache(rng, positions, dim);
  auto q = random_floats(rng, size_t(queries * dim), 0.0f, 1.5f);
  const auto bias = random_floats(rng, size_t(positions), 0.0f, 2.0f);
  std::vector<cpu::Sight> sights;  // odd queries have a bias, every third a window of 5
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t end = std::max<int64_t>(1, positions - i * 3);
    sights.push_back({.first = i % 3 == 2 ? std::max<int64_t>(0, end - 5) : 0,
                      .end = end,
                      .bias = i % 2 == 1 ? bias.data() : nullptr});
  }
  std::vector<float> truth(q.size()), y(q.size());
  for (int64_t i = 0; i < queries; ++i) {
    const cpu::Sight& s = sights[size_t(i)];
    const auto at = size_t(s.first * dim);
    reference::attention(
        std::span(q).subspan(size_t(i * dim), size_t(dim)), std::span(cache.plain_keys).subspan(at),
        std::span(cache.plain_values).subspan(at),
        s.bias == nullptr ? std::span<const float>() : std::span(bias).subspan(size_t(s.first)),
        s.end - s.first, std::span(truth).subspan(size_t(i * dim), size_t(dim)));
  }
  for (float& v : q) v /= std::sqrt(float(dim));
  std::vector<float> out(q.size()), scores(size_t(queries * (chunk + 8)));
  std::vector<cpu::AttentionPart> totals, parts;
  for (int64_t i = 0; i < queries; ++i) {
    totals.push_back({0, 0, y.data() + i * dim});
    parts.push_back({0, 0, out.data() + i * dim});
  }
  for (int64_t from = 0; from < positions; from += chunk) {
    attend(q.data(), queries, dim, cache.view(), {from, std::min(positions, from + chunk)},
           sights.data(), scores.data(), parts.data());
    for (size_t i = 0; i < totals.size(); ++i) cpu::merge(totals[i], parts[i], dim);
  }
  for (int64_t i = 0; i < queries; ++i) {
    for (int64_t d = 0; d < dim; ++d) y[size_t(i * dim + d)] /= totals[size_t(i)].sum;
  }
  CAPTURE(positions);
  CAPTURE(dim);
  CAPTURE(queries);
  CHECK_CLOSE(y, truth, 1e-5, 1e-4, 1e-10);
}

}  // namespace

TEST_CASE("attention over stretches, merged, equals the reference") {
  for (const cpu::Kernels* k : cpu::available_kernels()) {
    CAPTURE(std::string(k->name));
    for (int64_t positions : {1, 8, 19, 100, 263}) {
      for (int64_t dim : {4, 20, 64, 128}) {
        for (int64_t queries : {1, 3, 6, 13}) {
          check_attention<Cache<f16>>(k->attend_f16, positions, dim, queries, 64);
          check_attention<Cache<float>>(k->attend_f32, positions, dim, queries, 256);
          check_attention<CodeCache<8>>(k->attend_codes, positions, dim, queries, 64);
          check_attention<CodeCache<4>>(k->attend_codes, positions, dim, queries, 256);
        }
      }
    }
  }
}

TEST_CASE("a grid of keys or values keeps them within half a step") {
  Rng rng(11);
  for (const int bits : {2, 4, 8}) {
    for (const float center : {0.0f, 5.0f, -300.0f}) {
      auto x = random_floats(rng, 64, 3.0f);
      for (float& v : x) v += center;
      const KvGrid grid = KvGrid::of(x, bits);
      // Half a step, and what f16 rounds off the grid's low end and, at its top, off its scale.
      const float step = to_float(grid.scale), top = float((1 << bits) - 1);
      const float slack = std::abs(to_float(grid.low)) * 0x1p-11f + step * top * 0x1p-11f;
      for (float v : x) {
        CHECK(grid.code(v) <= top);
        CHECK(std::abs(grid.value(grid.code(v)) - v) <= 0.5f * step + slack);
      }
    }
  }
  const std::vector<float> same(8, 1.5f);
  CHECK(KvGrid::of(same, 4).value(KvGrid::of(same, 4).code(1.5f)) == 1.5f);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    const std::vector<float> x = {1.0f, bad, 2.0f};
    for (float v : x) CHECK(std::isnan(KvGrid::of(x, 8).value(KvGrid::of(x, 8).code(v))));
  }
}

TEST_CASE("attention finds the one key that matches") {
  // One-hot keys and a query of 1e4: the softmax is exactly one-hot, so the output is the value.
  for (const cpu::Kernels* k : cpu::available_kernels()) {
    const int64_t dim = 16, positions = 16;
    std::vector<float> keys(16 * 16), values(16 * 16), q(16, 0.0f), y(16), scores(16);
    for (int64_t t = 0; t < positions; ++t) {
      keys[size_t(t / 8 * dim * 8 + t * 8 + t % 8)] = 1.0f;
      for (int64_t d = 0; d < dim; ++d) values[size_t(t * dim + d)] = float(100 * t + d);
    }
    q[11] = 1e4f;
    const cpu::Sight all{.first = 0, .end = positions};
    cpu::AttentionPart part{0, 0, y.data()};
    k->attend_f32(q.data(), 1, dim, {keys.data(), values.data()}, {0, positions}, &all,
                  scores.data(), &part);
    CHECK(part.sum == 1.0f);
    for (int64_t d = 0; d < dim; ++d) CHECK(y[size_t(d)] == float(1100 + d));
  }
}
