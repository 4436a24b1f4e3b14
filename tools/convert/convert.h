#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "format/file.h"
#include "format/scheme.h"

namespace oq::convert {

struct Options {
  std::filesystem::path source, output;
  /// Of the blocks' linears, rounded to nearest; nullopt: as they are in the checkpoint. Where that
  /// has quantized them, they are taken over, and any other scheme is an error.
  std::optional<Scheme> scheme = {};
  /// Of embedding and head, or 16; nullopt: 8 where the linears are rounded, else 16.
  std::optional<int> head_bits = {};
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
  Scheme scheme;
  uint64_t tensors = 0, weights = 0;
  uint64_t bytes = 0;                ///< of the file
  std::vector<std::string> notices;  ///< what the user should know about the result
};

/// Whether a checkpoint's linears are quantized, in a way that is taken over. Throws as convert
/// does.
bool is_quantized(const std::filesystem::path& source);

/// Converts a checkpoint into a .oq file. Anonymous memory stays below the largest tensor plus a
/// few MB per thread. On failure throws oq::Error, and `output` is as it was before.
Result convert(const Options& options, const Observer& observer = {});

}  // namespace oq::convert
