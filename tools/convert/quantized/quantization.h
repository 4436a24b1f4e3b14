#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "format/scheme.h"
#include "tools/convert/checkpoint.h"
#include "tools/convert/quantized/gptq.h"

namespace oq::convert {

enum class QuantMethod { gptq, awq, owq };

/// What a checkpoint says about how it has quantized its linears.
struct Quantization {
  QuantMethod method = QuantMethod::gptq;
  uint32_t bits = 4;
  int64_t group = 0;       ///< columns that share a scale; 0: all
  bool symmetric = false;  ///< one zero point for all, 2^(bits-1)
  GptqZeros zeros = GptqZeros::stored;
  std::string producer;         ///< the tool that wrote it, where it says
  std::filesystem::path where;  ///< the file that says all this

  /// "gptq", "gptq_v2", "awq", "owq"
  std::string name() const;
  Scheme scheme() const;
};

/// The settings of a GPTQ or AWQ checkpoint: "quantization_config" in its config.json, or, of
/// older ones, the file quantize_config.json or quant_config.json beside it; nothing where it has
/// neither. Throws oq::Error, by name, on any other method, on variants of these two that cannot
/// be taken over, and on settings that contradict themselves.
std::optional<Quantization> read_quantization(const Checkpoint& checkpoint);

}  // namespace oq::convert
