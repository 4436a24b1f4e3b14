#include "tools/calibrate/measure.h"

#include <vector>

#include <fmt/format.h>

#include "tools/eval/model.h"
#include "tools/eval/perplexity.h"

namespace oq::calibrate {

void check_measurable(const std::filesystem::path& path, const std::string& text, int64_t window) {
  const Model model(path.string(), {});
  const std::vector<int32_t> ids = model.encode_text(text);
  cut_windows(ids, window, 1, model.config().vocab);
  if (window > model.config().context) {
    throw Error({.what = "the model's context is shorter than a window",
                 .expected = fmt::format("at most {}", model.config().context),
                 .found = std::to_string(window),
                 .hint = "lower --window"});
  }
}

Measured measure(const std::filesystem::path& before, const std::filesystem::path& after,
                 const std::string& text, int64_t window, int64_t max_windows, int threads,
                 const std::function<void(double tokens, double total)>& progress) {
  Perplexity results[2];
  for (int i = 0; i < 2; ++i) {
    const Model model((i == 0 ? before : after).string(), {.backend = {"auto", threads, true}});
    const std::vector<int32_t> ids = model.encode_text(text);
    const Windows windows = cut_windows(ids, window, max_windows, model.config().vocab);
    const double total = 2.0 * double(windows.count * window);
    Decoder decoder = model.decoder(window, window);
    results[i] = measure_perplexity(decoder, ids, window, max_windows,
                                    [&](int64_t n) { progress(double(n), total); });
  }
  Measured m;
  m.windows = results[1].windows;
  m.window = window;
  m.before = results[0].perplexity;
  m.after = results[1].perplexity;
  m.standard_error = paired_difference(results[0], results[1]).perplexity_standard_error;
  return m;
}

}  // namespace oq::calibrate
