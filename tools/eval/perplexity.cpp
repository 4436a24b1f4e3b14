#include "tools/eval/perplexity.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

namespace oq {
namespace {

/// Mean and standard error of the mean of everything added.
class Statistics {
 public:
  void add(double x) {  // Welford's update
    ++n_;
    const double delta = x - mean_;
    mean_ += delta / double(n_);
    squares_ += delta * (x - mean_);
  }
  double standard_error() const {
    return n_ < 2 ? 0.0 : std::sqrt(squares_ / double(n_ - 1) / double(n_));
  }

 private:
  int64_t n_ = 0;
  double mean_ = 0, squares_ = 0;
};

/// Scores of tokens 1.. of one window, in order.
std::vector<double> score_window(Decoder& decoder, std::span<const int32_t> ids,
                                 const std::function<void(int64_t)>& progress) {
  std::vector<double> scores;
  decoder.truncate(0);
  const auto total = int64_t(ids.size());
  for (int64_t first = 0; first < total - 1; first += decoder.max_rows()) {
    const int64_t n = std::min(decoder.max_rows(), total - 1 - first);
    std::vector<int32_t> positions(static_cast<size_t>(n)), rows(positions.size());
    std::iota(positions.begin(), positions.end(), int32_t(first));
    std::iota(rows.begin(), rows.end(), 0);
    const std::vector<int32_t> sequences(size_t(n), 0);
    decoder.step({.tokens = ids.subspan(size_t(first), size_t(n)),
                  .positions = positions,
                  .sequences = sequences,
                  .logit_rows = rows});
    for (int64_t i = 0; i < n; ++i) {
      scores.push_back(negative_log_likelihood(decoder.logits(i), ids[size_t(first + i + 1)]));
    }
    progress(n);
  }
  return scores;
}

}  // namespace

double negative_log_likelihood(std::span<const float> logits, int32_t target) {
  const float top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float l : logits) sum += std::exp(double(l - top));
  return std::log(sum) + double(top) - double(logits[size_t(target)]);
}

Perplexity measure_perplexity(Decoder& decoder, std::span<const int32_t> ids, int64_t window,
                              int64_t max_windows, const std::function<void(int64_t)>& progress) {
  int64_t windows = window > 0 ? int64_t(ids.size()) / window : 0;
  if (max_windows > 0) windows = std::min(windows, max_windows);
  if (windows == 0 || window < 2) {
    throw Error({.what = "text is shorter than one window",
                 .where = "perplexity",
                 .expected = fmt::format("at least {} tokens", std::max<int64_t>(2, window)),
                 .found = std::to_string(ids.size()),
                 .hint = "choose a smaller --window"});
  }
  const int64_t vocab = decoder.config().vocab;
  for (int32_t id : ids) {  // the last of a window is scored without going through the decoder
    if (id >= 0 && id < vocab) continue;
    throw Error({.what = "the tokenizer's ids go beyond the model's vocabulary",
                 .where = "perplexity",
                 .expected = fmt::format("0..{}", vocab - 1),
                 .found = std::to_string(id),
                 .hint = "convert the checkpoint again"});
  }
  Perplexity result;
  Statistics tokens;
  double sum = 0;
  for (int64_t w = 0; w < windows; ++w) {
    const auto part = ids.subspan(size_t(w * window), size_t(window));
    const std::vector<double> scores = score_window(decoder, part, progress);
    for (double s : scores) tokens.add(s);
    const double mean = std::accumulate(scores.begin(), scores.end(), 0.0) / double(scores.size());
    if (!std::isfinite(mean)) {
      throw Error({.what = "logits are not finite",
                   .where = fmt::format("window {}", w),
                   .hint = "check the file with oq-info --verify"});
    }
    result.window_nll.push_back(mean);
    sum += mean;
    result.tokens += int64_t(scores.size());
  }
  result.windows = windows;
  result.perplexity = std::exp(sum / double(windows));
  result.standard_error = result.perplexity * tokens.standard_error();
  return result;
}

std::string join_like_hf(std::string_view text) {
  std::string joined;
  bool first = true;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end == std::string_view::npos ? end : end + 1);
    text.remove_prefix(line.size());
    if (!first) joined += "\n\n";
    first = false;
    if (line.find_first_not_of(" \t\r\n\v\f") != std::string_view::npos) joined += line;
  }
  return joined;
}

}  // namespace oq
