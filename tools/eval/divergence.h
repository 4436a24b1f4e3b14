#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "tools/eval/windows.h"

namespace oq {

/// How far a model's predictions are from a reference's, over the predictions that perplexity
/// scores: those of all tokens of a window but its first.
struct Divergence {
  double mean = 0;  ///< of KL(reference || model), nats per token
  double standard_error = 0;
  double percentile_99 = 0;
  double agreement = 0;  ///< share of tokens where both think the same token the likeliest
  double agreement_standard_error = 0;
  int64_t windows = 0;
  int64_t tokens = 0;
};

/// One result for each of `models`. The reference runs once for all; every window is one step of
/// the decoders if all have max_rows >= window, else several. Calls `progress` with the number of
/// tokens that each decoder has taken. Throws oq::Error as cut_windows does, or when logits are
/// not finite. PRECOND: all decoders have one vocabulary.
std::vector<Divergence> measure_divergence(Decoder& reference, std::span<Decoder* const> models,
                                           std::span<const int32_t> ids, int64_t window,
                                           int64_t max_windows,
                                           const std::function<void(int64_t)>& progress);

}  // namespace oq
