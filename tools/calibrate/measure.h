#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "tools/calibrate/report.h"

namespace oq::calibrate {

/// Throws oq::Error where `measure` would for want of a tokenizer or of a whole window: before
/// hours go into a calibration.
void check_measurable(const std::filesystem::path& model, const std::string& text, int64_t window);

/// Perplexity of both models on `text`, in at most `max_windows` windows (0: all) of `window`
/// tokens, as oq-eval measures it. Calls `progress` with the tokens of each step and of all.
/// Throws oq::Error when the text has no whole window.
Measured measure(const std::filesystem::path& before, const std::filesystem::path& after,
                 const std::string& text, int64_t window, int64_t max_windows, int threads,
                 const std::function<void(double tokens, double total)>& progress);

}  // namespace oq::calibrate
