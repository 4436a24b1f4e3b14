#include "runtime/backend/cpu/kv_cache.h"

#include <array>
#include <type_traits>

#include <fmt/format.h>

#include "format/bytes.h"
#include "format/half.h"
#include "format/memory.h"

namespace oq {

CpuKvCache::CpuKvCache(const Plan& plan)
    : bits_(plan.kv_bits),
      sequences_(plan.sequences),
      kv_heads_(plan.config.kv_heads),
      head_dim_(plan.config.head_dim),
      range_(plan.scheme.range_width(kv_heads_, head_dim_)),
      positions_(int64_t(round_up(uint64_t(plan.context), uint64_t(cpu::kKeyTile)))) {
  uint64_t heads = 1, bytes = 0;
  bool fits = true;
  for (int64_t factor : {plan.config.blocks, sequences_, kv_heads_}) {
    fits = fits && checked_mul(heads, uint64_t(factor), heads);
  }
  uint64_t all = 0;
  fits = fits && checked_mul(heads, uint64_t(positions_), all);
  // 8 bytes of grids per position are less than kv_head_bytes() twice.
  fits = fits && checked_mul(all, 2 * plan.kv_head_bytes(), bytes);
  if (fits) {
    all_positions_ = int64_t(all);
    const auto values = size_t(all) * size_t(head_dim_);
    const auto size = size_t(value_bytes());
    keys_ = zeros(values, size, plan.pages);
    values_ = zeros(values, size, plan.pages);
    if (bits_ <= 8) grids_ = zeros(size_t(all), 4 * sizeof(f16), plan.pages);
  }
  if (!keys_ || !values_ || (bits_ <= 8 && !grids_)) {
    throw Error(
        {.what = "no memory for the KV cache",
         .where = "cpu backend",
         .found = fits ? fmt::format("{} MiB wanted", bytes >> 20) : "a size that overflows",
         .hint = "choose a smaller --ctx"});
  }
}

CpuKvCache::Memory CpuKvCache::zeros(size_t n, size_t size, Pages pages) {
  Memory memory(std::calloc(n, size));
  if (memory) advise({static_cast<std::byte*>(memory.get()), n * size}, pages);
  return memory;
}

cpu::KvCodes CpuKvCache::codes(int64_t layer, int64_t sequence, int64_t kv_head) const {
  const f16* grids =
      static_cast<const f16*>(grids_.get()) + first_position(layer, sequence, kv_head);
  return {head<uint8_t>(layer, sequence, kv_head), grids, grids + all_positions_,
          grids + 2 * all_positions_, grids + 3 * all_positions_};
}

namespace {

/// Keys of one position into the tiles of their head.
template <class T, class Stored>
void scatter_keys(T* keys, int64_t position, const float* k, int64_t head_dim, Stored stored) {
  T* to = keys + position / cpu::kKeyTile * head_dim * cpu::kKeyTile + position % cpu::kKeyTile;
  for (int64_t d = 0; d < head_dim; ++d) to[d * cpu::kKeyTile] = stored(k[d]);
}

}  // namespace

template <class T>
void CpuKvCache::append_floats(int64_t at, int64_t position, const float* k, const float* v) {
  const auto stored = [](float x) {
    if constexpr (std::is_same_v<T, float>) {
      return x;
    } else {
      return to_f16(x);
    }
  };
  scatter_keys(static_cast<T*>(keys_.get()) + at * head_dim_, position, k, head_dim_, stored);
  T* value = static_cast<T*>(values_.get()) + (at + position) * head_dim_;
  for (int64_t d = 0; d < head_dim_; ++d) value[d] = stored(v[d]);
}

void CpuKvCache::append_codes(int64_t at, int64_t position, const float* k, const float* v,
                              const KvGrid& of_keys, const KvGrid& of_values) {
  scatter_keys(static_cast<uint8_t*>(keys_.get()) + at * head_dim_, position, k, head_dim_,
               [&](float x) { return of_keys.code(x); });
  uint8_t* value = static_cast<uint8_t*>(values_.get()) + (at + position) * head_dim_;
  for (int64_t d = 0; d < head_dim_; ++d) value[d] = of_values.code(v[d]);
  f16* grid = static_cast<f16*>(grids_.get()) + at + position;
  for (f16 x : {of_keys.scale, of_keys.low, of_values.scale, of_values.low}) {
    *grid = x;
    grid += all_positions_;
  }
}

void CpuKvCache::append(int64_t layer, int64_t sequence, int64_t position, const float* k,
                        const float* v) {
  const auto range = size_t(range_);
  KvGrid of_keys{}, of_values{};
  for (int64_t h = 0; h < kv_heads_; ++h, k += head_dim_, v += head_dim_) {
    const int64_t at = first_position(layer, sequence, h);
    if (bits_ == 32) {
      append_floats<float>(at, position, k, v);
    } else if (bits_ == 16) {
      append_floats<f16>(at, position, k, v);
    } else {
      if (h * head_dim_ % range_ == 0) {  // the first head of a range
        of_keys = KvGrid::of({k, range}, bits_);
        of_values = KvGrid::of({v, range}, bits_);
      }
      append_codes(at, position, k, v, of_keys, of_values);
    }
  }
}

}  // namespace oq
