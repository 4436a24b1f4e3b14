#pragma once

#include <memory>
#include <set>

#include "tools/convert/checkpoint.h"
#include "tools/tensor_files/mapped_file.h"
#include "tools/tensor_files/torch/file.h"

namespace oq::convert {

/// A folder as Hugging Face lays it out: config.json, the weights in one file or in shards with an
/// index, and a tokenizer. Weights in safetensors (model.safetensors) are preferred to those in
/// torch's own format (pytorch_model.bin).
class HfFolder : public Checkpoint {
 public:
  HfFolder(std::filesystem::path folder, bool weights);

  Dialect dialect() const override { return Dialect::hf; }
  std::string format() const override { return torch_ ? "torch" : "safetensors"; }
  std::string architecture() const override;
  const Config& config() const override { return *config_; }
  std::vector<std::filesystem::path> files() const override { return files_; }
  TokenizerData tokenizer() const override { return import_hf_tokenizer(folder_); }

 private:
  void read_config();
  void read_weights();
  void read_shards(const std::filesystem::path& index);
  /// Names of the tensors that it brought.
  std::set<std::string> read_shard(const std::filesystem::path& path);
  std::vector<SourceTensor> read_safetensors_file(const std::filesystem::path& path);
  std::vector<SourceTensor> read_torch_file(const std::filesystem::path& path);

  std::filesystem::path folder_;
  std::unique_ptr<JsonConfig> config_;
  std::vector<std::filesystem::path> files_;
  bool torch_ = false;                             ///< the weights' format
  std::vector<std::unique_ptr<MappedFile>> maps_;  ///< safetensors
  std::vector<std::unique_ptr<torch::File>> torch_files_;
};

}  // namespace oq::convert
