#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "runtime/config.h"
#include "tools/calibrate/solver/linalg.h"

namespace oq::calibrate {

/// What was learned of one block, by name:
///
///   q.upper, q.lower             clipping (learn/weight_quantizer.h)   [rows][groups]
///   down.rows, down.columns      rank-1 compensation                   [1][rows], [1][columns]
///   qkv.scale, qkv.shift, ...    transformation (learn/transformation.h)  [1][channels]
///
/// or, where a file says what was measured of a linear's inputs (act_scales, act_shifts),
///
///   q.largest, q.middle          max |x|, and the middle of the range  [1][columns]
using BlockParameters = std::map<std::string, Matrix>;

/// A file of learned parameters.
struct Parameters {
  /// What they were learned from and with; empty for a file of OmniQuant's.
  std::map<std::string, std::string> metadata;
  std::vector<BlockParameters> blocks;
};

/// By which our own files of parameters are told from OmniQuant's.
inline constexpr const char* kParametersExtension = ".safetensors";

/// Reads what `write_parameters` wrote, or OmniQuant's own omni_parameters.pth: a dict of block
/// numbers, and in it one of tensors by the names of the paper's code for LLaMA, OPT, Falcon and
/// Mixtral; bounds of Falcon's fused q, k and v are taken apart.
/// Throws oq::Error naming file and tensor unless there are exactly `config.blocks` blocks of
/// finite matrices; whether their shapes fit is for who applies them to check.
Parameters read_parameters(const std::filesystem::path& path, const ModelConfig& config);

/// A safetensors file of fp32 tensors "blocks.3.q.upper". Throws oq::Error; a file that was there
/// is then as it was. PRECOND: `path` has kParametersExtension.
void write_parameters(const std::filesystem::path& path, const Parameters& parameters);

/// OmniQuant's act_scales.pt and act_shifts.pt (or "", for none): dicts of a vector for every
/// linear of the model; that of Falcon's fused linear is q's, k's and v's. Throws oq::Error naming
/// file and linear where one of them lacks, or has another number of inputs.
std::vector<BlockParameters> read_input_ranges(const std::filesystem::path& scales,
                                               const std::filesystem::path& shifts,
                                               const ModelConfig& config);

}  // namespace oq::calibrate
