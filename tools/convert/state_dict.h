#pragma once

#include <vector>

#include "tools/convert/checkpoint.h"
#include "tools/tensor_files/torch/value.h"

namespace oq::convert {

/// The entries of a state_dict as tensors of a checkpoint, in its order; `dict` must outlive them.
/// An entry that is no tensor (a step count, extra state) becomes one without type or data, its
/// dtype what it is instead. Throws oq::Error naming `where` where a key is no string, or no entry
/// is a tensor: then this is a dict with a state_dict in it.
std::vector<SourceTensor> state_dict(const torch::Dict& dict, const std::string& where);

}  // namespace oq::convert
