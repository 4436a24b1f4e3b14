#pragma once

#include <string>

#include "bench/gpu/results.h"

namespace oq {

/// What a whole model is held to; 0: nothing.
struct ModelAims {
  double share = 0;      ///< of the read bandwidth, at the least, by its last decode test
  double gigabytes = 0;  ///< of the device's memory, at the most
};

/// The columns of a row from what `oq-bench --json` printed. Throws oq::Error where it did not.
Results::Json model_columns(const std::string& report, const ModelAims& aims);

}  // namespace oq
