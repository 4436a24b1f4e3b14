#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/config.h"
#include "tools/convert/checkpoint.h"
#include "tools/convert/rope.h"

namespace oq::convert {

/// What a checkpoint says about itself, in OQ's words.
struct Model {
  ModelConfig config;
  Rope rope;
};

/// In which order a source keeps the rows of q and k within a head.
enum class RowOrder {
  halves,  ///< as OQ does: dimension i is rotated together with i + rope_dim / 2
  pairs,   ///< GGUF's LLaMA: dimension 2i is rotated together with 2i + 1
};

/// Where one tensor of OQ comes from; {} stands for the block's number in all three names.
struct TensorNames {
  std::string_view oq, hf, gguf;
  RowOrder gguf_order = RowOrder::halves;
};

/// All that the converter knows about a family. A new family is a new row of the table in
/// families.cpp, and its test; nothing else asks which family a model is of.
struct Family {
  std::string_view name;
  std::vector<std::string_view> hf_model_types;      ///< config.json: model_type
  std::vector<std::string_view> gguf_architectures;  ///< general.architecture
  Model (*from_hf)(const Checkpoint&);
  Model (*from_gguf)(const Checkpoint&);
  std::vector<TensorNames> tensors;
  std::vector<std::string_view> ignored;  ///< tensors of either dialect that are no weights
};

/// Throws oq::Error, listing what there is, where no row fits.
const Family& find_family(const Checkpoint& checkpoint);

/// The family's reading of the checkpoint, with every size held to what OQ can run.
Model read_model(const Family& family, const Checkpoint& checkpoint);

}  // namespace oq::convert
