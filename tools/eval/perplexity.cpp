#include "tools/eval/perplexity.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "tools/eval/statistics.h"

namespace oq {
namespace {

/// Scores of tokens `unscored`.. of one window, in order. The last token predicts nothing, but a
/// range of activations per tensor includes it.
std::vector<double> score_window(Decoder& decoder, std::span<const int32_t> ids, int64_t unscored,
                                 const std::function<void(int64_t)>& progress) {
  std::vector<double> scores;
  const auto total = int64_t(ids.size());
  for (int64_t first = 0; first < total; first += decoder.max_rows()) {
    const int64_t n = std::min(decoder.max_rows(), total - first);
    step_with_logits(decoder, ids.subspan(size_t(first), size_t(n)), first);
    for (int64_t next = std::max(first + 1, unscored); next <= std::min(first + n, total - 1);
         ++next) {
      scores.push_back(
          negative_log_likelihood(decoder.logits(next - first - 1), ids[size_t(next)]));
    }
    progress(n);
  }
  return scores;
}

}  // namespace

Perplexity measure_perplexity(Decoder& decoder, std::span<const int32_t> ids, int64_t window,
                              int64_t max_windows, const std::function<void(int64_t)>& progress,
                              int64_t unscored) {
  const Windows windows = cut_windows(ids, window, max_windows, decoder.config().vocab);
  Perplexity result;
  Statistics tokens, means;
  for (int64_t w = 0; w < windows.count; ++w) {
    Statistics scores;
    for (double s : score_window(decoder, windows[w], unscored, progress)) {
      tokens.add(s);
      scores.add(s);
    }
    if (!std::isfinite(scores.mean())) {
      throw Error({.what = "logits are not finite",
                   .where = fmt::format("window {}", w),
                   .hint = "check the file with oq-info --verify"});
    }
    result.window_nll.push_back(scores.mean());
    means.add(scores.mean());
  }
  result.windows = windows.count;
  result.tokens = tokens.count();
  result.perplexity = std::exp(means.mean());
  result.standard_error = result.perplexity * tokens.standard_error();
  return result;
}

Difference paired_difference(const Perplexity& from, const Perplexity& to) {
  Statistics nll, perplexity;
  for (size_t w = 0; w < from.window_nll.size(); ++w) {
    nll.add(to.window_nll[w] - from.window_nll[w]);
    // d exp(mean) = exp(mean) d mean, of either model.
    perplexity.add(to.perplexity * to.window_nll[w] - from.perplexity * from.window_nll[w]);
  }
  return {.nll = nll.mean(),
          .nll_standard_error = nll.standard_error(),
          .perplexity = to.perplexity - from.perplexity,
          .perplexity_standard_error = perplexity.standard_error()};
}

}  // namespace oq
