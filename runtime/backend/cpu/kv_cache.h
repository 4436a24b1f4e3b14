#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "runtime/backend/backend.h"

namespace oq {

/// Keys and values of every layer, sequence and KV head, as f16, or as f32 in exact mode, in the
/// layouts of kernels/cpu/kernels.h. Zero pages cost no memory until a position is written.
class CpuKvCache {
 public:
  explicit CpuKvCache(const Plan& plan);

  bool exact() const { return exact_; }

  /// k and v of one token: [kv_heads][head_dim] each.
  void append(int64_t layer, int64_t sequence, int64_t position, const float* k, const float* v);

  /// PRECOND: T is float in exact mode, f16 otherwise.
  template <class T>
  cpu::KvView<T> head(int64_t layer, int64_t sequence, int64_t kv_head) const {
    const int64_t at = offset(layer, sequence, kv_head);
    return {static_cast<const T*>(keys_.get()) + at, static_cast<const T*>(values_.get()) + at};
  }

 private:
  int64_t offset(int64_t layer, int64_t sequence, int64_t kv_head) const {
    return ((layer * sequences_ + sequence) * kv_heads_ + kv_head) * positions_ * head_dim_;
  }
  template <class T>
  void append_typed(int64_t layer, int64_t sequence, int64_t position, const float* k,
                    const float* v);

  struct Free {
    void operator()(void* p) const { std::free(p); }
  };

  bool exact_;
  int64_t sequences_, kv_heads_, head_dim_;
  int64_t positions_;  ///< the context, rounded up to whole key tiles
  std::unique_ptr<void, Free> keys_, values_;
};

}  // namespace oq
