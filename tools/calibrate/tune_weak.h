#pragma once

#include <cstdint>

#include "tools/calibrate/options.h"

namespace oq::calibrate {

/// What a user may ask of weak-column tuning, beside the text, windows, seed and threads of
/// Options: `input` is a model with weak columns, `output` the small file of tuned ones.
struct WeakTuning {
  int64_t steps = 0;
  double rate = 1e-4;  ///< AdamW's
};

struct TuneResult {
  double before = 0, after = 0;  ///< mean loss per token over the windows that were trained on
  uint64_t weights = 0;          ///< that were tuned
  uint64_t bytes = 0;            ///< of the file
};

/// Trains the weak columns of a quantized model with the language-model loss on calibration
/// windows, one window a step, in turn, and writes them apart from it (format/weak_file.h). Windows
/// that no step would come to are not drawn. The same options, machine and threads give the same
/// file. Throws oq::Error; a place that cannot be written is found before the work, and an output
/// that was there is then as it was.
TuneResult tune_weak(const Options& options, const WeakTuning& tuning,
                     const Observer& observer = {});

}  // namespace oq::calibrate
