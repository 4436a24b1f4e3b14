#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "format/file.h"
#include "runtime/config.h"
#include "tools/calibrate/options.h"

namespace oq::calibrate {

/// The tokens that a calibration looks at.
struct CalibrationText {
  std::vector<std::vector<int32_t>> windows;  ///< all of the same length
  bool first_tokens = false;                  ///< the first window is of first tokens
  std::string source;                         ///< "wikitext2.txt" or "self"
  uint32_t crc = 0;                           ///< CRC-32C of the token ids, one after another
};

/// Throws oq::Error unless the model can take the windows that are asked for: beyond its context it
/// has neither positions nor what attention adds by distance.
void check_windows(const Options& options, const File& file, const ModelConfig& config);

/// Windows drawn from a text file, or written by the model itself ("self": at temperature 1 from
/// its BOS, or from a random token where it has none, as in LLM-QAT, Liu et al. 2023). Where first
/// tokens are learned from, a window of tokens drawn from the others comes before them. Equal
/// options give equal windows. Throws oq::Error when the text is too short, or the model has no
/// tokenizer to read it with. PRECOND: check_windows.
CalibrationText calibration_text(const std::shared_ptr<const File>& file, const Options& options,
                                 const Observer& observer);

}  // namespace oq::calibrate
