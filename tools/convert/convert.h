#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "format/file.h"
#include "format/scheme.h"

namespace oq::convert {

struct Options {
  std::filesystem::path source, output;
  Scheme scheme;            ///< of the blocks' linears, rounded to nearest
  int head_bits = 8;        ///< of embedding and head, when the scheme quantizes weights; or 16
  Kind dtype = Kind::f16;   ///< of what is not quantized: f16, bf16 or f32
  bool vocab_only = false;  ///< the tokenizer, and no model
  int threads = 1;          ///< the bytes of the result do not depend on it
};

/// How a conversion tells what it does. May be empty.
struct Observer {
  /// `done` of `total` bytes of the source are converted; now at `tensor`.
  std::function<void(uint64_t done, uint64_t total, std::string_view tensor)> progress;
};

struct Result {
  std::string family;  ///< empty for a vocabulary
  uint64_t tensors = 0, weights = 0;
  uint64_t bytes = 0;                ///< of the file
  std::vector<std::string> notices;  ///< what the user should know about the result
};

/// Converts a checkpoint into a .oq file. Anonymous memory stays below the largest tensor plus a
/// few MB per thread. On failure throws oq::Error, and `output` is as it was before.
Result convert(const Options& options, const Observer& observer = {});

}  // namespace oq::convert
