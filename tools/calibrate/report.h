#pragma once

#include "runtime/config.h"
#include "tools/calibrate/options.h"

namespace oq::calibrate {

/// One self-contained page: what was asked for, bits per weight, and the error of every linear as
/// charts and table. Throws oq::Error when it cannot be written.
void write_report(const Options& options, const ModelConfig& config, const std::string& text_source,
                  const Result& result);

}  // namespace oq::calibrate
