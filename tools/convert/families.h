#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/config.h"
#include "tools/convert/alibi.h"
#include "tools/convert/checkpoint.h"
#include "tools/convert/layouts.h"
#include "tools/convert/rope.h"

namespace oq::convert {

/// What a checkpoint says about itself, in OQ's words.
struct Model {
  ModelConfig config;
  Rope rope;
  Alibi alibi;
  std::vector<std::string> notices;  ///< what the user should know

  /// A row of a tensor that no checkpoint holds: "rope.inv_freq", "alibi".
  void compute(std::string_view tensor, uint64_t row, std::span<float> out) const;
};

/// Where tensors of OQ come from; {} stands for the numbers of block and expert. ".weight" is to
/// be added, or ".bias" for the tensor's bias. A tensor that several rows of a table name comes
/// from the first of them whose source is there.
struct TensorNames {
  std::string_view oq, hf, gguf;  ///< empty: that dialect does not have it
  Layout hf_layout = whole, gguf_layout = whole;
};

/// All that the converter knows about a family. A new family is a new file in families/, a line of
/// the table in families.cpp, and its test; nothing else asks which family a model is of.
struct Family {
  std::string_view name = {};
  std::vector<std::string_view> hf_model_types = {};      ///< config.json: model_type
  std::vector<std::string_view> gguf_architectures = {};  ///< general.architecture
  Model (*from_hf)(const Checkpoint&) = nullptr;
  Model (*from_gguf)(const Checkpoint&) = nullptr;
  std::string_view prefix = {};  ///< of the HF names; some checkpoints leave it out
  std::vector<TensorNames> tensors = {};
  std::vector<std::string_view> ignored =
      {};  ///< whole names, of either dialect, that are no weights
};

/// Throws oq::Error, listing what there is, where no row fits.
const Family& find_family(const Checkpoint& checkpoint);

/// The family's reading of the checkpoint, with every size held to what OQ can run.
Model read_model(const Family& family, const Checkpoint& checkpoint);

}  // namespace oq::convert
