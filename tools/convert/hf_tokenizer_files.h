#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "runtime/tokenizer/vocabulary.h"
#include "tools/convert/tokenizer_habits.h"

namespace oq::convert {

/// The small files that stand beside a vocabulary in a Hugging Face folder. All of them may be
/// missing; damaged ones throw oq::Error.

/// A JSON object of the folder, empty where there is no such file.
nlohmann::json read_object(const std::filesystem::path& path);

/// A token by name: "<s>", or {"content": "<s>", ...}; "" where it is missing.
std::string token_name(const nlohmann::json& object, const char* key);

/// BOS, EOS, stop ids and chat template, from tokenizer_config.json, special_tokens_map.json,
/// generation_config.json, chat_template.jinja. `vocabulary` is the file that errors name.
TokenizerHabits read_habits(const std::filesystem::path& folder,
                            const std::filesystem::path& vocabulary);

struct AddedToken {
  int64_t id;
  std::string text;
  TokenKind kind;
};

/// "added_tokens_decoder" of tokenizer_config.json, or the older added_tokens.json, which does not
/// say what kind its tokens are: chat models' turn marks, so nobody may type them. Those below
/// `first` are left out, and from there on single_word ones are refused.
std::vector<AddedToken> read_added_tokens(const std::filesystem::path& folder, int64_t first);

}  // namespace oq::convert
