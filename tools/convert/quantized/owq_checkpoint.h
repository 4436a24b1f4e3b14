#pragma once

#include <optional>

#include "tools/convert/hf_folder.h"
#include "tools/convert/quantized/quantization.h"

namespace oq::convert {

/// A packed checkpoint of OWQ: one .pth or .pt file of torch.save that holds
///   {"model_state_dict": {..}, "n_out_dict": {LINEAR: n_out}, "packing": True, "bits": 3 or 4, ..}
/// and, as it has neither config nor tokenizer, the folder around it, which is that of the model
/// that was quantized. The state_dict's tensors are those of the whole model (owq.h).
class OwqCheckpoint : public Checkpoint {
 public:
  /// The file that `source` means: itself, or the only one in a folder that holds no other
  /// weights; nothing where it is neither.
  static std::optional<std::filesystem::path> find(const std::filesystem::path& source);

  /// Where config and tokenizer lie.
  static std::filesystem::path folder_of(const std::filesystem::path& file);

  explicit OwqCheckpoint(const std::filesystem::path& file);

  using Checkpoint::find;
  Dialect dialect() const override { return Dialect::hf; }
  std::string format() const override { return "torch"; }
  std::string architecture() const override { return config_.text("model_type"); }
  const Config& config() const override { return config_; }
  std::vector<std::filesystem::path> files() const override;
  TokenizerData tokenizer() const override { return folder_.tokenizer(); }

  const Quantization& quantization() const { return quantization_; }

 private:
  void read_settings(const torch::Dict& root);
  void check_counts(const torch::Dict& counts) const;

  std::filesystem::path path_;
  HfFolder folder_;  ///< for its tokenizer
  JsonConfig config_;
  torch::File file_;
  Quantization quantization_;
};

}  // namespace oq::convert
