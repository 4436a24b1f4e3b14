#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace oq::convert {

/// Attention with linear biases [Press et al. 2021]: what a head adds to the score of a key grows
/// with the key's position. A family's own way of rounding it is part of its model, so it happens
/// here and the .oq holds the result.
struct Alibi {
  /// The largest context for which a table is written.
  static constexpr int64_t kMaxContext = 131072;

  std::vector<float> slopes;  ///< one per head
  bool in_bf16 = false;       ///< slope, position and their product are rounded to bf16
  float divisor = 1;          ///< of the product: sqrt(head_dim) where it is added before that

  /// out[t] is added to `head`'s score, already divided by sqrt(head_dim), of a key at t.
  void row(uint64_t head, std::span<float> out) const;
};

/// Slopes as BLOOM and Falcon have them: of the n heads, with p the largest power of two up to n,
/// the first p have 2^(-8 i / p), i = 1..p, the others 2^(-4 i / p), i = 1, 3, 5, ...
std::vector<float> alibi_slopes(int64_t heads);

}  // namespace oq::convert
