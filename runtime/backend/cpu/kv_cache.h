#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "kernels/cpu/kernels.h"
#include "kernels/kv_grid.h"
#include "runtime/backend/backend.h"

namespace oq {

/// Keys and values of every layer, sequence and KV head, in the plan's type and the layouts of
/// kernels/cpu/kernels.h. Zero pages cost no memory until a position is written: of huge ones
/// (Plan::pages), a head takes 2 MiB at a time.
class CpuKvCache {
 public:
  /// Throws oq::Error when there is no memory for it.
  explicit CpuKvCache(const Plan& plan);

  int bits() const { return bits_; }

  /// k and v of one token: [kv_heads][head_dim] each.
  void append(int64_t layer, int64_t sequence, int64_t position, const float* k, const float* v);

  /// PRECOND: T is float at 32 bits, f16 at 16.
  template <class T>
  cpu::KvView<T> head(int64_t layer, int64_t sequence, int64_t kv_head) const {
    const int64_t at = first_position(layer, sequence, kv_head) * head_dim_;
    return {static_cast<const T*>(keys_.get()) + at, static_cast<const T*>(values_.get()) + at};
  }
  /// The keys from a position on, a multiple of kKeyTile; of any width.
  const void* keys(int64_t layer, int64_t sequence, int64_t kv_head, int64_t position) const {
    const int64_t at = (first_position(layer, sequence, kv_head) + position) * head_dim_;
    return static_cast<const std::byte*>(keys_.get()) + at * value_bytes();
  }
  /// PRECOND: at most 8 bits.
  cpu::KvCodes codes(int64_t layer, int64_t sequence, int64_t kv_head) const;

 private:
  /// Of one head, counted over all heads before it.
  int64_t first_position(int64_t layer, int64_t sequence, int64_t kv_head) const {
    return ((layer * sequences_ + sequence) * kv_heads_ + kv_head) * positions_;
  }
  int64_t value_bytes() const { return bits_ > 8 ? bits_ / 8 : 1; }
  template <class T>
  void append_floats(int64_t at, int64_t position, const float* k, const float* v);
  /// The grids are of k and of v, or of more heads than these.
  void append_codes(int64_t at, int64_t position, const float* k, const float* v,
                    const KvGrid& of_keys, const KvGrid& of_values);

  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  using Memory = std::unique_ptr<void, Free>;
  static Memory zeros(size_t n, size_t size, Pages pages);

  int bits_;
  int64_t sequences_, kv_heads_, head_dim_;
  int64_t range_;              ///< neighbouring values of a token's k or v that share a grid
  int64_t positions_;          ///< the context, rounded up to whole key tiles
  int64_t all_positions_ = 0;  ///< of all heads, or what that overflows to
  Memory keys_, values_;
  Memory grids_;  ///< of codes: f16 [keys' scales, lows, values' scales, lows][all_positions]
};

}  // namespace oq
