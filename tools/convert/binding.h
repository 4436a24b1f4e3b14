#pragma once

#include <cstdint>
#include <vector>

#include "tools/convert/families.h"
#include "tools/tensor_files/row_map.h"

namespace oq::convert {

/// One tensor to write, and where it comes from.
struct Binding {
  TensorSpec spec;
  const SourceTensor* source = nullptr;  ///< nullptr: computed (Model::compute)
  RowMap rows;                           ///< of the source, or elements where it is a bias

  /// A norm or bias: one row, whose elements `rows` counts.
  bool vector() const { return spec.role == Role::f32 && spec.rows == 1; }
  /// Bytes of the source that this tensor takes: its share, where it is fused with others.
  uint64_t source_bytes() const;
};

/// Every tensor that the model's config calls for, in its order, bound to its source. Throws
/// oq::Error where one is missing or has another shape than the config says, and where the
/// checkpoint holds weights that the config does not call for.
std::vector<Binding> bind_tensors(const Family& family, const ModelConfig& config,
                                  const Checkpoint& checkpoint);

}  // namespace oq::convert
