#pragma once

#include <string>
#include <vector>

#include "tools/convert/families.h"

namespace oq::convert {

/// One tensor to write, and where it comes from.
struct Binding {
  TensorSpec spec;
  const SourceTensor* source = nullptr;  ///< nullptr: "rope.inv_freq", which is computed
  RowOrder order = RowOrder::halves;
};

/// Every tensor that the model's config calls for, in its order, bound to its source. Throws
/// oq::Error where one is missing or has another shape than the config says, and where the
/// checkpoint holds weights that the config does not call for.
std::vector<Binding> bind_tensors(const Family& family, const ModelConfig& config,
                                  const Checkpoint& checkpoint);

}  // namespace oq::convert
