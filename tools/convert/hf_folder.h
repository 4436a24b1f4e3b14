#pragma once

#include <memory>
#include <set>

#include "tools/convert/checkpoint.h"
#include "tools/convert/mapped_file.h"

namespace oq::convert {

/// A folder as Hugging Face lays it out: config.json, model.safetensors or its shards with
/// model.safetensors.index.json, and a tokenizer.
class HfFolder : public Checkpoint {
 public:
  HfFolder(std::filesystem::path folder, bool weights);

  Dialect dialect() const override { return Dialect::hf; }
  std::string format() const override { return "safetensors"; }
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

  std::filesystem::path folder_;
  std::unique_ptr<JsonConfig> config_;
  std::vector<std::filesystem::path> files_;
  std::vector<std::unique_ptr<MappedFile>> maps_;
};

}  // namespace oq::convert
