#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "tools/eval/logits.h"
#include "tools/eval/windows.h"

namespace oq {

/// Perplexity of a text, as the papers measure it: a window's score is the mean of -log p over all
/// its tokens but the first, and `perplexity` is exp of the mean over windows.
struct Perplexity {
  double perplexity = 0;
  double standard_error = 0;  ///< of `perplexity`, from the spread of all scored tokens
  int64_t windows = 0;
  int64_t tokens = 0;              ///< scored ones
  std::vector<double> window_nll;  ///< mean of each window: what paired comparisons need
};

/// `window` tokens per window, at most `max_windows` windows (0: all), of which the first
/// `unscored` are only read. A window is one step of the decoder if that has max_rows >= window,
/// else several. Calls `progress` with the number of tokens of each step. Throws oq::Error as
/// cut_windows does, or when the logits are not finite. PRECOND: 0 < unscored < window.
Perplexity measure_perplexity(Decoder& decoder, std::span<const int32_t> ids, int64_t window,
                              int64_t max_windows, const std::function<void(int64_t)>& progress,
                              int64_t unscored = 1);

/// What changes from one model to another over the same windows. The standard errors are those of
/// paired samples: what makes a window hard for both is no part of them.
struct Difference {
  double nll = 0;  ///< difference of the means over windows
  double nll_standard_error = 0;
  double perplexity = 0;
  double perplexity_standard_error = 0;  ///< to first order
};

/// `to` minus `from`. PRECOND: both have the same windows of the same ids.
Difference paired_difference(const Perplexity& from, const Perplexity& to);

}  // namespace oq
