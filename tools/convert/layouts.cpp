#include "tools/convert/layouts.h"

#include "tools/tensor_files/grouped_qkv.h"

namespace oq::convert {
namespace {

/// Of fused q, k and v.
uint64_t fused_rows(const ModelConfig& c) { return uint64_t(c.q_width() + 2 * c.kv_width()); }

GroupedQkv grouped(const ModelConfig& c) {
  return {uint64_t(c.heads), uint64_t(c.kv_heads), uint64_t(c.head_dim)};
}

}  // namespace

Slice whole(const ModelConfig&, uint64_t rows, uint64_t) { return {rows, {}}; }

Slice pairs(const ModelConfig& c, uint64_t rows, uint64_t) {
  return {rows, {.head = uint64_t(c.head_dim), .paired = uint64_t(c.rope_dim)}};
}

Slice grouped_q(const ModelConfig& c, uint64_t, uint64_t) {
  return {grouped(c).rows(), grouped(c).q()};
}
Slice grouped_k(const ModelConfig& c, uint64_t, uint64_t) {
  return {grouped(c).rows(), grouped(c).k()};
}
Slice grouped_v(const ModelConfig& c, uint64_t, uint64_t) {
  return {grouped(c).rows(), grouped(c).v()};
}

Slice stacked_q(const ModelConfig& c, uint64_t, uint64_t) { return {fused_rows(c), {}}; }
Slice stacked_k(const ModelConfig& c, uint64_t, uint64_t) {
  return {fused_rows(c), {.first = uint64_t(c.q_width())}};
}
Slice stacked_v(const ModelConfig& c, uint64_t, uint64_t) {
  return {fused_rows(c), {.first = uint64_t(c.q_width() + c.kv_width())}};
}

Slice expert_of_all(const ModelConfig& c, uint64_t rows, uint64_t expert) {
  return {uint64_t(c.experts) * rows, {.first = expert * rows}};
}

Slice after_two(const ModelConfig&, uint64_t rows, uint64_t) { return {rows + 2, {.first = 2}}; }

}  // namespace oq::convert
