#include "tools/convert/gpt2_files.h"

#include <unordered_map>

#include "tools/convert/hf_tokenizer_files.h"
#include "tools/convert/json.h"
#include "tools/convert/json_reader.h"
#include "tools/convert/pretokenizers.h"
#include "tools/convert/token_table.h"
#include "tools/tensor_files/mapped_file.h"

namespace oq::convert {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kEndOfText = "<|endoftext|>";

/// Names of special tokens, and how they are recognised.
using Specials = std::unordered_map<std::string, TokenKind>;

void add_special(Specials& specials, const json& token) {
  const auto flag = [&](const char* key) {
    if (!token.is_object()) return false;
    const auto it = token.find(key);
    return it != token.end() && *it == true;
  };
  const std::string name = token_name(json{{"token", token}}, "token");
  if (!name.empty()) specials[name] = {TokenType::special, flag("lstrip"), flag("rstrip")};
}

Specials read_specials(const fs::path& folder) {
  Specials specials;
  for (const char* file : {"special_tokens_map.json", "tokenizer_config.json"}) {
    const json root = read_object(folder / file);
    for (const char* key : {"bos_token", "eos_token", "unk_token", "pad_token", "sep_token",
                            "cls_token", "mask_token"}) {
      if (const auto it = root.find(key); it != root.end()) add_special(specials, *it);
    }
    const auto more = root.find("additional_special_tokens");
    if (more == root.end() || !more->is_array()) continue;
    for (const json& token : *more) add_special(specials, token);
  }
  if (specials.empty()) specials[kEndOfText] = {.type = TokenType::special};
  return specials;
}

/// The lines of merges.txt without its "#version". PRECOND: `text` outlives them.
std::vector<std::pair<std::string_view, std::string_view>> read_merges(std::string_view text,
                                                                       const std::string& where) {
  std::vector<std::pair<std::string_view, std::string_view>> merges;
  for (size_t at = 0, line = 0; at < text.size(); ++line) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view merge = text.substr(at, end - at);
    at = end + 1;
    if (merge.ends_with('\r')) merge.remove_suffix(1);
    if (merge.empty() || (line == 0 && merge.starts_with("#version"))) continue;
    merges.push_back(split_merge(merge, where + ": line " + std::to_string(line + 1)));
  }
  return merges;
}

/// The tokens of vocab.json by id, and those that the folder adds. PRECOND: all arguments outlive
/// the result.
std::vector<SourceToken> read_tokens(const JsonReader& in, const json& vocab,
                                     const Specials& specials,
                                     const std::vector<AddedToken>& added) {
  TokenTable table(in, vocab.size() + added.size());
  for (const auto& [text, id] : vocab.items()) {
    const auto special = specials.find(text);
    table.add(id, "the vocabulary",
              {text, special == specials.end() ? TokenKind() : special->second});
  }
  for (const AddedToken& token : added) {
    table.put(json(token.id), "an added token", {token.text, token.kind});
  }
  return table.tokens();
}

Pretokenization read_class(const fs::path& path) {
  const json config = read_object(path);
  const JsonReader in(path.string());
  std::string name(in.text(config, "tokenizer_class"));
  if (name.ends_with("Fast")) name.resize(name.size() - 4);
  if (!name.empty() && name != "GPT2Tokenizer" && name != "Qwen2Tokenizer") {
    throw in.error("tokenizer_class", "is not one that OQ knows how to cut text for",
                   "'" + name + "'",
                   "OQ takes vocab.json with merges.txt from GPT2Tokenizer and Qwen2Tokenizer; put "
                   "the checkpoint's tokenizer.json into the folder");
  }
  Pretokenization cut = known_pretokenization(name == "Qwen2Tokenizer" ? "qwen2" : "gpt-2", name);
  if (in.flag(config, "add_prefix_space", false)) cut.prefix_space = PrefixSpace::missing;
  return cut;
}

}  // namespace

TokenizerData read_gpt2_files(const fs::path& folder) {
  const fs::path path = folder / "vocab.json", merges = folder / "merges.txt";
  const JsonReader in(path.string());
  const json vocab = read_object(path);
  const std::vector<AddedToken> added = read_added_tokens(folder, 0);
  const Specials specials = read_specials(folder);
  TokenizerData data;
  data.kind = TokenizerData::Kind::bpe;
  read_class(folder / "tokenizer_config.json").move_to(data);
  data.tokens =
      bpe_vocabulary(read_tokens(in, vocab, specials, added), Spelling::byte_level, path.string());
  const MappedFile file(merges);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                              file.bytes().size());
  data.merges = bpe_merges(read_merges(text, merges.string()), data.tokens, Spelling::byte_level,
                           merges.string());
  for (int32_t id = 0; id < data.tokens.size(); ++id) {
    const bool end =
        data.tokens.kind(id).type == TokenType::special && data.tokens.bytes(id) == kEndOfText;
    if (!end) continue;
    data.bos = id;  // where the folder names no other
    data.stop_ids = {id};
  }
  return data;
}

}  // namespace oq::convert
