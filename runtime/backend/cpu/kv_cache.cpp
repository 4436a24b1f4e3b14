#include "runtime/backend/cpu/kv_cache.h"

#include <type_traits>

#include <fmt/format.h>

#include "format/bytes.h"
#include "format/half.h"

namespace oq {

CpuKvCache::CpuKvCache(const Plan& plan)
    : exact_(plan.exact),
      sequences_(plan.sequences),
      kv_heads_(plan.config.kv_heads),
      head_dim_(plan.config.head_dim),
      positions_(int64_t(round_up(uint64_t(plan.context), uint64_t(cpu::kKeyTile)))) {
  uint64_t n = exact_ ? 4 : 2;
  bool fits = true;
  for (int64_t factor : {plan.config.blocks, sequences_, kv_heads_, positions_, head_dim_}) {
    fits = fits && checked_mul(n, uint64_t(factor), n);
  }
  if (fits) {
    keys_.reset(std::calloc(1, n));
    values_.reset(std::calloc(1, n));
  }
  if (!keys_ || !values_) {
    throw Error(
        {.what = "no memory for the KV cache",
         .where = "cpu backend",
         .found = fits ? fmt::format("2 x {} MiB wanted", n >> 20) : "a size that overflows",
         .hint = "choose a smaller --ctx"});
  }
}

template <class T>
void CpuKvCache::append_typed(int64_t layer, int64_t sequence, int64_t position, const float* k,
                              const float* v) {
  const auto stored = [](float x) {
    if constexpr (std::is_same_v<T, float>) {
      return x;
    } else {
      return to_f16(x);
    }
  };
  for (int64_t h = 0; h < kv_heads_; ++h) {
    const int64_t at = offset(layer, sequence, h);
    T* key = static_cast<T*>(keys_.get()) + at +
             position / cpu::kKeyTile * head_dim_ * cpu::kKeyTile + position % cpu::kKeyTile;
    T* value = static_cast<T*>(values_.get()) + at + position * head_dim_;
    for (int64_t d = 0; d < head_dim_; ++d) {
      key[d * cpu::kKeyTile] = stored(k[h * head_dim_ + d]);
      value[d] = stored(v[h * head_dim_ + d]);
    }
  }
}

void CpuKvCache::append(int64_t layer, int64_t sequence, int64_t position, const float* k,
                        const float* v) {
  if (exact_) {
    append_typed<float>(layer, sequence, position, k, v);
  } else {
    append_typed<f16>(layer, sequence, position, k, v);
  }
}

}  // namespace oq
