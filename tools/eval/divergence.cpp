#include "tools/eval/divergence.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "tools/eval/logits.h"
#include "tools/eval/statistics.h"

namespace oq {
namespace {

/// What has been seen of one model.
struct Sample {
  std::vector<double> divergences;
  Statistics mean, agreement;

  void add(std::span<const float> reference, std::span<const float> model) {
    divergences.push_back(kl_divergence(reference, model));
    mean.add(divergences.back());
    agreement.add(best_token(reference) == best_token(model) ? 1 : 0);
  }

  Divergence result(int64_t windows) const {
    return {.mean = mean.mean(),
            .standard_error = mean.standard_error(),
            .percentile_99 = quantile(divergences, 0.99),
            .agreement = agreement.mean(),
            .agreement_standard_error = agreement.standard_error(),
            .windows = windows,
            .tokens = mean.count()};
  }
};

}  // namespace

std::vector<Divergence> measure_divergence(Decoder& reference, std::span<Decoder* const> models,
                                           std::span<const int32_t> ids, int64_t window,
                                           int64_t max_windows,
                                           const std::function<void(int64_t)>& progress) {
  const Windows windows = cut_windows(ids, window, max_windows, reference.config().vocab);
  int64_t rows = reference.max_rows();
  for (const Decoder* m : models) rows = std::min(rows, m->max_rows());
  std::vector<Sample> samples(models.size());
  for (int64_t w = 0; w < windows.count; ++w) {
    for (int64_t first = 0; first < window; first += rows) {
      const int64_t n = std::min(rows, window - first);
      const int64_t scored = std::min(n, window - 1 - first);  // those of perplexity
      const auto part = windows[w].subspan(size_t(first), size_t(n));
      step_with_logits(reference, part, first);
      progress(n);
      for (size_t m = 0; m < models.size(); ++m) {
        step_with_logits(*models[m], part, first);
        for (int64_t i = 0; i < scored; ++i) {
          samples[m].add(reference.logits(i), models[m]->logits(i));
        }
        progress(n);
      }
    }
    for (const Sample& s : samples) {
      if (std::isfinite(s.mean.mean())) continue;
      throw Error({.what = "logits are not finite",
                   .where = fmt::format("window {}", w),
                   .hint = "check both files with oq-info --verify"});
    }
  }
  std::vector<Divergence> results;
  for (const Sample& s : samples) results.push_back(s.result(windows.count));
  return results;
}

}  // namespace oq
