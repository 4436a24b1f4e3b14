#include "tools/convert/tokenizer_import.h"

#include <algorithm>
#include <optional>

#include "runtime/chat.h"
#include "runtime/tokenizer/sentencepiece_model.h"
#include "tools/convert/byte_level.h"
#include "tools/convert/json.h"
#include "tools/convert/mapped_file.h"
#include "tools/convert/pretokenizers.h"
#include "tools/convert/sha256.h"
#include "tools/convert/tokenizer_json.h"

namespace oq::convert {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// Tokens that end an answer in one family or another. Each counts where the chat template writes
/// it and the vocabulary has it as a special token.
constexpr std::string_view kEndTokens[] = {"<|im_end|>",      "<|eot_id|>",      "<|eom_id|>",
                                           "<|end_of_text|>", "<|endoftext|>",   "<|end|>",
                                           "<end_of_turn>",   "<|end_of_turn|>", "</s>"};

/// What a checkpoint says about a tokenizer beside its vocabulary.
struct Habits {
  std::string where;
  std::string bos, eos;           ///< names of tokens, "" where not said
  std::vector<int64_t> stop_ids;  ///< of the model, which may reach beyond the tokenizer
  std::optional<bool> adds_bos;
  std::string jinja;
};

/// Checks the vocabulary, and fills in BOS, stop ids and the chat template.
TokenizerData finish(TokenizerData data, const Habits& habits) {
  const auto tokenizer = make_tokenizer(data, habits.where);
  const auto stop = [&](int64_t id) {
    const auto& ids = data.stop_ids;
    if (id < 0 || id >= tokenizer->vocab_size()) return;
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) data.stop_ids.push_back(int32_t(id));
  };
  if (!habits.bos.empty()) data.bos = tokenizer->find_token(habits.bos);
  if (habits.adds_bos) data.adds_bos = *habits.adds_bos;
  if (data.bos < 0) data.adds_bos = false;
  if (!habits.eos.empty()) stop(tokenizer->find_token(habits.eos));
  for (const int64_t id : habits.stop_ids) stop(id);
  if (!habits.jinja.empty()) {
    data.chat_template = ChatTemplate::recognise(habits.jinja);
    Sha256 hash;
    hash.update(std::as_bytes(std::span(habits.jinja)));
    data.chat_template_hash = hash.hex();
    for (const std::string_view name : kEndTokens) {
      if (habits.jinja.find(name) == std::string::npos) continue;
      const int32_t id = tokenizer->find_token(name);
      if (id >= 0 && tokenizer->token_bytes(id).empty()) stop(id);
    }
  }
  make_tokenizer(data, habits.where);  // with its ids this time
  return data;
}

// ---- GGUF ----

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
  Pretokenization cut = known_pretokenization(name, where + ": tokenizer.ggml.pre");
  TokenizerData data;
  data.kind = TokenizerData::Kind::bpe;
  data.tokens = byte_level_vocabulary(tokens, where);
  data.merges = byte_level_merges(merges, data.tokens, where);
  data.patterns = std::move(cut.patterns);
  data.byte_patterns = std::move(cut.byte_patterns);
  data.ignore_merges = cut.ignore_merges;
  data.add_prefix_space = gguf.get_or("tokenizer.ggml.add_space_prefix", false);
  data.adds_bos = cut.ignore_merges && name.starts_with("llama");  // where the file does not say
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

// ---- Hugging Face ----

/// A JSON object of the folder, empty where there is no such file.
json read_object(const fs::path& path) {
  if (!fs::exists(path)) return json::object();
  json root = read_json(path);
  if (!root.is_object()) throw Error({.what = "is not a JSON object", .where = path.string()});
  return root;
}

/// A token by name: "<s>", or {"content": "<s>", ...}; "" where it is missing.
std::string token_name(const json& object, const char* key) {
  auto it = object.find(key);
  if (it == object.end()) return {};
  if (it->is_object()) {
    const json& token = *it;
    it = token.find("content");
    if (it == token.end()) return {};
  }
  return it->is_string() ? it->get<std::string>() : std::string();
}

/// A template, or a list of named ones: "default", or else the first.
std::string chat_template(const json& config) {
  const auto it = config.find("chat_template");
  if (it == config.end()) return {};
  if (it->is_string()) return it->get<std::string>();
  std::string chosen;
  if (!it->is_array()) return chosen;
  for (const json& entry : *it) {
    if (!entry.is_object()) continue;
    const std::string source = token_name(entry, "template");
    if (chosen.empty() || token_name(entry, "name") == "default") chosen = source;
  }
  return chosen;
}

Habits read_habits(const fs::path& folder, const fs::path& vocabulary) {
  const json config = read_object(folder / "tokenizer_config.json");
  const json names = read_object(folder / "special_tokens_map.json");
  const json generation = read_object(folder / "generation_config.json");
  Habits habits;
  habits.where = vocabulary.string();
  habits.bos = token_name(config.contains("bos_token") ? config : names, "bos_token");
  habits.eos = token_name(config.contains("eos_token") ? config : names, "eos_token");
  if (const auto it = config.find("add_bos_token"); it != config.end() && it->is_boolean()) {
    habits.adds_bos = it->get<bool>();
  }
  if (const auto it = generation.find("eos_token_id"); it != generation.end()) {
    for (const json& id : it->is_array() ? *it : json::array({*it})) {
      if (id.is_number_integer()) habits.stop_ids.push_back(id.get<int64_t>());
    }
  }
  const fs::path jinja = folder / "chat_template.jinja";
  if (fs::exists(jinja) && fs::file_size(jinja) > 0) {
    const MappedFile file(jinja);
    habits.jinja.assign(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  } else {
    habits.jinja = chat_template(config);
  }
  return habits;
}

/// Tokens behind the pieces of a sentencepiece model.
class ExtraTokens {
 public:
  ExtraTokens(size_t first, std::string where) : first_(first), where_(std::move(where)) {}

  void add(int64_t id, const std::string& text, TokenKind kind) {
    if (id < int64_t(first_)) return;  // the model has it
    if (id >= int64_t(first_) + 65536) {
      throw Error({.what = "added token lies far beyond the vocabulary",
                   .where = where_,
                   .expected = "below " + std::to_string(first_ + 65536),
                   .found = std::to_string(id)});
    }
    const size_t i = size_t(id) - first_;
    if (i >= tokens_.size()) tokens_.resize(i + 1, {"", {.type = TokenType::unused}});
    tokens_[i] = {text, kind};
  }

  Vocabulary vocabulary() const {
    Vocabulary v;
    for (const auto& [text, kind] : tokens_) v.add(text, kind);
    return v;
  }

 private:
  size_t first_;
  std::string where_;
  std::vector<std::pair<std::string, TokenKind>> tokens_;
};

/// "added_tokens_decoder" of tokenizer_config.json, or the older added_tokens.json, which does not
/// say what kind its tokens are: chat models' turn marks, so nobody may type them.
Vocabulary extra_tokens(const fs::path& folder, size_t first) {
  const fs::path path = folder / "tokenizer_config.json";
  ExtraTokens extra(first, path.string());
  const json config = read_object(path);
  if (const auto it = config.find("added_tokens_decoder"); it != config.end() && it->is_object()) {
    for (const auto& [id, token] : it->items()) {
      const bool number =
          !id.empty() && id.size() < 10 && id.find_first_not_of("0123456789") == std::string::npos;
      if (!number || !token.is_object()) {
        throw Error({.what = "added_tokens_decoder holds no token under '" + id + "'",
                     .where = path.string()});
      }
      const auto flag = [&token = token](const char* key) {
        const auto f = token.find(key);
        return f != token.end() && f->is_boolean() && f->get<bool>();
      };
      const std::string text = token_name(token, "content");
      if (flag("single_word") && std::stoll(id) >= int64_t(first)) {
        throw Error({.what = "has a single_word token, which OQ does not run",
                     .where = path.string(),
                     .found = "'" + text + "'"});
      }
      extra.add(std::stoll(id), text,
                {flag("special") ? TokenType::special : TokenType::added, flag("lstrip"),
                 flag("rstrip")});
    }
    return extra.vocabulary();
  }
  const json older = read_object(folder / "added_tokens.json");
  for (const auto& [text, id] : older.items()) {
    if (id.is_number_integer()) extra.add(id.get<int64_t>(), text, {.type = TokenType::special});
  }
  return extra.vocabulary();
}

TokenizerData hf_sentencepiece(const fs::path& folder, const fs::path& path) {
  const MappedFile file(path);
  TokenizerData data;
  data.kind = TokenizerData::Kind::sentencepiece;
  data.model.assign(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  const SentencePieceModel model = SentencePieceModel::parse(data.model, path.string());
  data.tokens = extra_tokens(folder, model.pieces.size());
  data.bos = model.find(model.bos_piece);
  if (const int32_t eos = model.find(model.eos_piece); eos >= 0) data.stop_ids = {eos};
  data.adds_bos = true;  // LLaMA's habit, unless tokenizer_config.json says otherwise
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
  Habits habits;
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
  return finish(std::move(data), habits);
}

TokenizerData import_hf_tokenizer(const fs::path& folder) {
  const fs::path model = folder / "tokenizer.model", text = folder / "tokenizer.json";
  if (fs::exists(model)) {
    return finish(hf_sentencepiece(folder, model), read_habits(folder, model));
  }
  if (fs::exists(text)) {
    return finish(tokenizer_from_json(read_json(text), text.string()), read_habits(folder, text));
  }
  return {};
}

}  // namespace oq::convert
