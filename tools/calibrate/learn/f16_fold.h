#pragma once

#include <span>

#include "tools/calibrate/learn/transformation.h"

namespace oq::calibrate {

/// Folds `pairs`, in their order, into `block`, as OmniQuant's code does it: there a learned block
/// and all that was learned become half tensors first, and norms, biases and weights are changed
/// one step after another by operations whose results are half again. So `block`, scales and shifts
/// are rounded to f16, and then every one of these steps is:
///
///   norm     b - d, then / s; w / s
///   columns  W d, then b + it; W s
///   rows     b - d, then / s; W / s (q and v), or b s; W s (k)
///
/// What torch computes by element is fp32, rounded once, on a CPU as on a GPU. W d is a sum in
/// fp32, rounded once; its order is the machine's there and ours here. Biases and routers that
/// OmniQuant does not know are changed in the same way.
void fold_in_f16(ThreadPool& pool, std::span<const Pair> pairs, BlockWeights& block);

}  // namespace oq::calibrate
