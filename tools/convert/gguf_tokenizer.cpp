#include <algorithm>

#include "runtime/tokenizer/sentencepiece_model.h"
#include "tools/convert/pretokenizers.h"
#include "tools/convert/spelling.h"
#include "tools/convert/tokenizer_habits.h"
#include "tools/convert/tokenizer_import.h"

namespace oq::convert {
namespace {

constexpr const char* kTokens = "tokenizer.ggml.tokens";
constexpr const char* kTypes = "tokenizer.ggml.token_type";

/// Token types, numbered as in sentencepiece.
std::vector<int64_t> gguf_types(const GgufFile& gguf, size_t tokens) {
  std::vector<int64_t> types(tokens, SentencePieceModel::normal);
  if (gguf.contains(kTypes)) types = gguf.get<std::vector<int64_t>>(kTypes);
  const bool known = std::all_of(types.begin(), types.end(), [](int64_t t) {
    return t >= SentencePieceModel::normal && t <= SentencePieceModel::byte;
  });
  if (types.size() != tokens || !known) {
    throw Error({.what = std::string(kTypes) + " does not fit the tokens",
                 .where = gguf.where(),
                 .expected = std::to_string(tokens) + " numbers of 1 to 6",
                 .found = std::to_string(types.size())});
  }
  return types;
}

TokenizerData gguf_bpe(const GgufFile& gguf) {
  const std::string& where = gguf.where();
  const auto texts = gguf.get<std::vector<std::string_view>>(kTokens);
  const auto types = gguf_types(gguf, texts.size());
  std::vector<SourceToken> tokens;
  for (size_t id = 0; id < texts.size(); ++id) {
    TokenType type = TokenType::normal;
    switch (types[id]) {
      case SentencePieceModel::control:
      case SentencePieceModel::unknown:
        type = TokenType::special;
        break;
      case SentencePieceModel::user_defined:
        type = TokenType::added;
        break;
      case SentencePieceModel::unused:
        type = TokenType::unused;
        break;
    }
    tokens.push_back({texts[id], {.type = type}});
  }
  std::vector<std::pair<std::string_view, std::string_view>> merges;
  for (const auto merge : gguf.get<std::vector<std::string_view>>("tokenizer.ggml.merges")) {
    merges.push_back(split_merge(merge, where));
  }
  const auto name = gguf.get_or<std::string_view>("tokenizer.ggml.pre", "");
  if (name.empty()) {
    throw Error({.what = "does not say how its tokenizer cuts text (tokenizer.ggml.pre)",
                 .where = where,
                 .hint = "it was written before 2024-05: take a newer GGUF, or the Hugging Face "
                         "folder"});
  }
  TokenizerData data;
  data.kind = TokenizerData::Kind::bpe;
  known_pretokenization(name, where + ": tokenizer.ggml.pre").move_to(data);
  data.tokens = bpe_vocabulary(tokens, Spelling::byte_level, where);
  data.merges = bpe_merges(merges, data.tokens, Spelling::byte_level, where);
  if (gguf.get_or("tokenizer.ggml.add_space_prefix", false)) {
    data.prefix_space = PrefixSpace::missing;
  }
  data.adds_bos = data.ignore_merges && name.starts_with("llama");  // where the file does not say
  return data;
}

TokenizerData gguf_sentencepiece(const GgufFile& gguf) {
  const std::string& where = gguf.where();
  if (gguf.contains("tokenizer.ggml.precompiled_charsmap")) {
    throw Error(
        {.what = "sentencepiece normalizer with a character map is not supported", .where = where});
  }
  const auto texts = gguf.get<std::vector<std::string_view>>(kTokens);
  const auto types = gguf_types(gguf, texts.size());
  const auto scores = gguf.get<std::vector<double>>("tokenizer.ggml.scores");
  if (scores.size() != texts.size()) {
    throw Error({.what = "tokenizer.ggml.scores does not fit the tokens",
                 .where = where,
                 .expected = std::to_string(texts.size()),
                 .found = std::to_string(scores.size())});
  }
  SentencePieceModel model;
  model.algorithm = SentencePieceModel::bpe;
  for (size_t id = 0; id < texts.size(); ++id) {
    const auto type = SentencePieceModel::Type(types[id]);
    model.byte_fallback |= type == SentencePieceModel::byte;
    model.pieces.push_back({std::string(texts[id]), float(scores[id]), type});
  }
  model.add_dummy_prefix = gguf.get_or("tokenizer.ggml.add_space_prefix", true);
  model.remove_extra_whitespaces = gguf.get_or("tokenizer.ggml.remove_extra_whitespaces", false);
  model.check(where);
  TokenizerData data;
  data.kind = TokenizerData::Kind::sentencepiece;
  data.model = model.serialize();
  data.adds_bos = true;  // where the file does not say
  return data;
}

}  // namespace

TokenizerData import_gguf_tokenizer(const GgufFile& gguf) {
  const auto kind = gguf.get_or<std::string_view>("tokenizer.ggml.model", "");
  if (kind.empty() || kind == "none" || kind == "no_vocab") return {};
  TokenizerData data;
  if (kind == "gpt2") {
    data = gguf_bpe(gguf);
  } else if (kind == "llama") {
    data = gguf_sentencepiece(gguf);
  } else {
    throw Error({.what = "tokenizer is of a kind that OQ does not run",
                 .where = gguf.where() + ": tokenizer.ggml.model",
                 .expected = "gpt2 or llama",
                 .found = "'" + std::string(kind) + "'"});
  }
  TokenizerHabits habits;
  habits.where = gguf.where();
  const int64_t bos = gguf.get_or<int64_t>("tokenizer.ggml.bos_token_id", -1);
  data.bos = bos >= 0 && bos <= INT32_MAX ? int32_t(bos) : -1;
  if (gguf.contains("tokenizer.ggml.add_bos_token")) {
    habits.adds_bos = gguf.get<bool>("tokenizer.ggml.add_bos_token");
  }
  if (data.bos < 0) data.adds_bos = false;
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                          "tokenizer.ggml.eom_token_id"}) {
    habits.stop_ids.push_back(gguf.get_or<int64_t>(key, -1));
  }
  habits.jinja = gguf.get_or<std::string_view>("tokenizer.chat_template", "");
  return with_habits(std::move(data), habits);
}

}  // namespace oq::convert
