#pragma once

#include <map>
#include <string>

#include "format/file.h"
#include "tools/calibrate/calibration_text.h"
#include "tools/calibrate/options.h"
#include "tools/calibrate/parameters.h"

namespace oq::calibrate {

/// Where a result comes from, by the names that a file of learned parameters has in its metadata:
///
///   options           --method and --scheme, and what else parameters are applied by
///   training          the other options that shaped the result, as flags
///   text, text_crc32c, seed             the calibration text
///   model_crc32c, tokenizer_crc32c      of the tensors of the model, and of those of its tokenizer
///   source_sha256     of the files that the model was converted from
///   tool
using Provenance = std::map<std::string, std::string>;

Provenance provenance_of(const Options& options, const File& model, const CalibrationText& text);

/// Takes what is said of the training from `given`, which came from `path`. Throws oq::Error where
/// they were learned for another model or tokenizer, or for other options.
void take_training(Provenance& own, const Parameters& given, const std::filesystem::path& path);

/// PRECOND: what made it has checked the number.
uint64_t seed_of(const Provenance& provenance);

/// Everything that shaped the result, in one line.
std::string options_text(const Provenance& provenance, const Options& options);

/// What learned blocks of one run have in common and those of another have not.
std::string run_key(const Provenance& provenance, const Options& options);

}  // namespace oq::calibrate
