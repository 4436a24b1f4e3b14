#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "runtime/tokenizer/tokenizer_data.h"

namespace oq::test {

/// Files as checkpoints carry them, made from the vocabularies of OQ_TEST_DATA.
/// golden/make_tokenizer.py says what each stands for. Nothing where the data is not there.

/// tokenizer.json: "falcon", "bloom", "qwen2", "llama3", "mixtral", "mistral" or "metaspace".
std::optional<nlohmann::json> tokenizer_json(const std::string& name);

/// vocab.json, merges.txt and tokenizer_config.json of OPT in `folder`; false without data.
bool write_opt_files(const std::filesystem::path& folder);

/// The GGUF that a writer makes of a sentencepiece model's pieces.
std::string sentencepiece_gguf(const std::string& model);

}  // namespace oq::test
