#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/decoder.h"

namespace oq {

/// Perplexity of a text, as the papers measure it: the ids of the whole text are cut into windows
/// that do not overlap, what is left over is dropped, and a window's score is the mean of
/// -log p over all its tokens but the first. `perplexity` is exp of the mean over windows.
struct Perplexity {
  double perplexity = 0;
  double standard_error = 0;  ///< of `perplexity`, from the spread of all scored tokens
  int64_t windows = 0;
  int64_t tokens = 0;              ///< scored ones
  std::vector<double> window_nll;  ///< mean of each window: what paired comparisons need
};

/// `window` tokens per window, at most `max_windows` windows (0: all). Calls `progress` with the
/// number of tokens of each step. Throws oq::Error when the text is shorter than one window, or
/// when the model's logits are not finite.
Perplexity measure_perplexity(Decoder& decoder, std::span<const int32_t> ids, int64_t window,
                              int64_t max_windows, const std::function<void(int64_t)>& progress);

/// The string that the papers make of WikiText: every line with its newline (an empty one without
/// text or newline), joined by two newlines.
std::string join_like_hf(std::string_view text);

/// -log softmax(logits)[target], in double.
double negative_log_likelihood(std::span<const float> logits, int32_t target);

}  // namespace oq
