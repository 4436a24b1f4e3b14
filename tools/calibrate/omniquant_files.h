#pragma once

#include <filesystem>
#include <vector>

#include "tools/calibrate/parameters.h"

namespace oq::calibrate {

/// omni_parameters.pth by our names. Its tensors are of shape [rows * groups][1] and [channels];
/// rows are `config`'s, those of Falcon's fused linear all of q, k and v. Scales are at least 0.01
/// in size, as the paper's code makes them before each use. Throws oq::Error naming file, block and
/// tensor.
std::vector<BlockParameters> read_omniquant_parameters(const std::filesystem::path& path,
                                                       const ModelConfig& config);

}  // namespace oq::calibrate
