#pragma once

#include "tools/convert/checkpoint.h"
#include "tools/convert/gguf.h"
#include "tools/tensor_files/mapped_file.h"

namespace oq::convert {

/// One GGUF file. Split files are refused with a hint how to join them.
class GgufCheckpoint : public Checkpoint {
 public:
  explicit GgufCheckpoint(const std::filesystem::path& path);

  Dialect dialect() const override { return Dialect::gguf; }
  std::string format() const override { return "gguf"; }
  std::string architecture() const override;
  const Config& config() const override { return config_; }
  std::vector<std::filesystem::path> files() const override { return {map_.path()}; }
  TokenizerData tokenizer() const override { return import_gguf_tokenizer(gguf_); }

 private:
  MappedFile map_;
  GgufFile gguf_;
  GgufConfig config_;
};

}  // namespace oq::convert
