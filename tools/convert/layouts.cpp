#include "tools/convert/layouts.h"

namespace oq::convert {
namespace {

/// Fused q, k and v: the rows of a group of `heads` query heads and one head each of k and v.
uint64_t fused_rows(const ModelConfig& c) { return uint64_t(c.q_width() + 2 * c.kv_width()); }

/// `run` rows from `first` on of the group of each KV head.
Slice of_each_group(const ModelConfig& c, uint64_t first, uint64_t run) {
  const uint64_t stride = fused_rows(c) / uint64_t(c.kv_heads);
  return {fused_rows(c), {.first = first, .run = run, .stride = stride}};
}

uint64_t queries_of_group(const ModelConfig& c) {
  return uint64_t(c.heads / c.kv_heads * c.head_dim);
}

}  // namespace

Slice whole(const ModelConfig&, uint64_t rows, uint64_t) { return {rows, {}}; }

Slice pairs(const ModelConfig& c, uint64_t rows, uint64_t) {
  return {rows, {.head = uint64_t(c.head_dim), .paired = uint64_t(c.rope_dim)}};
}

Slice grouped_q(const ModelConfig& c, uint64_t, uint64_t) {
  return of_each_group(c, 0, queries_of_group(c));
}
Slice grouped_k(const ModelConfig& c, uint64_t, uint64_t) {
  return of_each_group(c, queries_of_group(c), uint64_t(c.head_dim));
}
Slice grouped_v(const ModelConfig& c, uint64_t, uint64_t) {
  return of_each_group(c, queries_of_group(c) + uint64_t(c.head_dim), uint64_t(c.head_dim));
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
