#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "format/file.h"
#include "runtime/config.h"
#include "tools/calibrate/options.h"

namespace oq::calibrate {

/// What a calibration is going to take, told before it starts.
struct Preflight {
  uint64_t memory = 0;     ///< at the peak, without what is only mapped
  uint64_t available = 0;  ///< of memory, now
  uint64_t disk = 0;       ///< beside the output: finished blocks, the result, hidden states
  double flops = 0;
  double last_block = 1;             ///< its share of the work, of which the other blocks have 1
  double seconds = 0;                ///< at the speed that this machine's BLAS has just shown
  uint64_t hidden_memory_limit = 0;  ///< hidden states above this go to a file

  /// One line for people.
  std::string text() const;
  /// Throws oq::Error when the disk or the memory cannot hold it.
  void check(const std::filesystem::path& output) const;
};

/// `windows` 0: no text. Takes about a tenth of a second, to measure BLAS.
Preflight preflight(const File& file, const ModelConfig& config, const Options& options,
                    int64_t windows);

}  // namespace oq::calibrate
