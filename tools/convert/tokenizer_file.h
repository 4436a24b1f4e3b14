#pragma once

#include "tools/convert/checkpoint.h"

namespace oq::convert {

/// A tokenizer.model or tokenizer.json alone, as `--vocab-only` takes it: no settings, no weights.
class TokenizerFile final : public Checkpoint {
 public:
  /// PRECOND: is_tokenizer_file(path).
  explicit TokenizerFile(std::filesystem::path path)
      : path_(std::move(path)), config_(nlohmann::json::object(), path_.string()) {}

  Dialect dialect() const override { return Dialect::hf; }
  std::string format() const override { return "tokenizer"; }
  std::string architecture() const override { return {}; }
  const Config& config() const override { return config_; }
  std::vector<std::filesystem::path> files() const override { return {path_}; }
  TokenizerData tokenizer() const override { return import_tokenizer_file(path_); }

 private:
  std::filesystem::path path_;
  JsonConfig config_;
};

}  // namespace oq::convert
