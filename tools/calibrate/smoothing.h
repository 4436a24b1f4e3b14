#pragma once

#include "tools/calibrate/block_job.h"

namespace oq::calibrate {

/// Moves the size of activations into weights (SmoothQuant), wherever the inverse folds into what
/// comes before without changing what the block computes:
///
///   q, k, v and gate, up   the norm before them (with experts, the router's columns as well)
///   o                      rows of v; query heads that share a KV head share a scale, the largest
///   down                   rows of up, where the MLP is gated or its activation is ReLU
///
/// A norm after the residual sum (OPT-350m) and GELU cannot take a scale: those inputs stay.
void smooth_block(BlockJob& job);

}  // namespace oq::calibrate
