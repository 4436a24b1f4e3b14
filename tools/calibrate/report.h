#pragma once

#include <filesystem>
#include <string>

#include "runtime/config.h"
#include "tools/calibrate/options.h"

namespace oq::calibrate {

/// Perplexity of one text, before and after. `windows` 0: it was not measured.
struct Measured {
  std::string text = {};
  int64_t windows = 0, window = 0;  ///< how many, of how many tokens
  double before = 0, after = 0;
  double standard_error = 0;  ///< of after - before, paired over the windows; NaN for one window

  /// "27.160, full precision 20.363 (+6.797 +- 0.130); 40 windows of 2048 tokens of wiki.txt".
  std::string text_line() const;
};

/// One self-contained page: what was asked for, what the bytes are spent on, and the error of every
/// linear as charts and table. Throws oq::Error when it cannot be written.
void write_report(const std::filesystem::path& path, const Options& options,
                  const ModelConfig& config, const Result& result, const Measured& measured = {});

}  // namespace oq::calibrate
