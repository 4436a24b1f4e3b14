#pragma once

#include <cstdint>

#include "runtime/config.h"
#include "tools/tensor_files/row_map.h"

namespace oq::convert {

/// A source and the part of it that one tensor of OQ is.
struct Slice {
  uint64_t rows = 0;  ///< of the whole source; elements where it is a bias
  RowMap map;
};

/// How a tensor of OQ with `rows` rows (a bias: elements) lies in its source. `expert` is the
/// number of its expert, or 0. PRECOND: the config was checked.
using Layout = Slice (*)(const ModelConfig& config, uint64_t rows, uint64_t expert);

/// The source is the tensor.
Slice whole(const ModelConfig& config, uint64_t rows, uint64_t expert);

/// GGUF's LLaMA: rows of q and k in pairs within each head.
Slice pairs(const ModelConfig& config, uint64_t rows, uint64_t expert);

/// Fused q, k and v, KV head by KV head (GroupedQkv).
Slice grouped_q(const ModelConfig& config, uint64_t rows, uint64_t expert);
Slice grouped_k(const ModelConfig& config, uint64_t rows, uint64_t expert);
Slice grouped_v(const ModelConfig& config, uint64_t rows, uint64_t expert);

/// Fused q, k and v, one after another, as GGUF keeps them.
Slice stacked_q(const ModelConfig& config, uint64_t rows, uint64_t expert);
Slice stacked_k(const ModelConfig& config, uint64_t rows, uint64_t expert);
Slice stacked_v(const ModelConfig& config, uint64_t rows, uint64_t expert);

/// All experts, one after another.
Slice expert_of_all(const ModelConfig& config, uint64_t rows, uint64_t expert);

/// OPT's table of positions, whose first two rows are never looked at.
Slice after_two(const ModelConfig& config, uint64_t rows, uint64_t expert);

}  // namespace oq::convert
