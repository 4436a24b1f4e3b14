#pragma once

#include <span>
#include <string>
#include <string_view>

#include "runtime/config.h"

namespace oq {

/// A published model without its weights: what it takes to make random ones of the same sizes.
struct Shape {
  std::string_view name;
  ModelConfig config;
  double rope_theta = 10000;
  bool alibi_divided = false;  ///< slopes are divided by sqrt(head_dim), as the scores are
};

/// The one table of shapes for every bench.
std::span<const Shape> shapes();

/// nullptr where there is none of that name.
const Shape* find_shape(std::string_view name);

/// "smollm2-135m, llama-1.1b, ..."
std::string shape_names();

/// Weights, norms and biases that a checkpoint of this config holds; tied tables count once.
int64_t parameters(const ModelConfig& config);

}  // namespace oq
