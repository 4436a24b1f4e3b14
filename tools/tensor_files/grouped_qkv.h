#pragma once

#include "tools/tensor_files/row_map.h"

namespace oq {

/// Fused q, k and v as Falcon and BLOOM have them, KV head by KV head: [its query heads | k | v].
/// With one KV head that is [q | k | v], with as many as query heads [q | k | v] of each head.
/// PRECOND: kv_heads divides heads.
struct GroupedQkv {
  uint64_t heads, kv_heads, head_dim;

  /// Of all three.
  uint64_t rows() const { return kv_heads * stride(); }
  RowMap q() const { return {.run = queries(), .stride = stride()}; }
  RowMap k() const { return {.first = queries(), .run = head_dim, .stride = stride()}; }
  RowMap v() const { return {.first = queries() + head_dim, .run = head_dim, .stride = stride()}; }

 private:
  uint64_t queries() const { return heads / kv_heads * head_dim; }
  uint64_t stride() const { return queries() + 2 * head_dim; }
};

}  // namespace oq
