#include "tools/convert/hf_tokenizer_files.h"

#include "tools/convert/json.h"
#include "tools/tensor_files/mapped_file.h"

namespace oq::convert {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

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

AddedToken decoder_entry(const std::string& id, const json& token, const std::string& where) {
  const bool number =
      !id.empty() && id.size() < 10 && id.find_first_not_of("0123456789") == std::string::npos;
  if (!number || !token.is_object()) {
    throw Error({.what = "added_tokens_decoder holds no token under '" + id + "'", .where = where});
  }
  const auto flag = [&](const char* key) {
    const auto f = token.find(key);
    return f != token.end() && f->is_boolean() && f->get<bool>();
  };
  return {
      std::stoll(id),
      token_name(token, "content"),
      {flag("special") ? TokenType::special : TokenType::added, flag("lstrip"), flag("rstrip")}};
}

}  // namespace

json read_object(const fs::path& path) {
  return fs::exists(path) ? read_json_object(path) : json::object();
}

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

TokenizerHabits read_habits(const fs::path& folder, const fs::path& vocabulary) {
  const json config = read_object(folder / "tokenizer_config.json");
  const json names = read_object(folder / "special_tokens_map.json");
  const json generation = read_object(folder / "generation_config.json");
  TokenizerHabits habits;
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

std::vector<AddedToken> read_added_tokens(const fs::path& folder, int64_t first) {
  const fs::path path = folder / "tokenizer_config.json";
  std::vector<AddedToken> tokens;
  const json config = read_object(path);
  if (const auto it = config.find("added_tokens_decoder"); it != config.end() && it->is_object()) {
    for (const auto& [id, token] : it->items()) {
      const AddedToken added = decoder_entry(id, token, path.string());
      if (added.id < first) continue;
      if (const auto w = token.find("single_word"); w != token.end() && *w == true) {
        throw Error({.what = "has a single_word token, which OQ does not run",
                     .where = path.string(),
                     .found = "'" + added.text + "'"});
      }
      tokens.push_back(added);
    }
    return tokens;
  }
  const json older = read_object(folder / "added_tokens.json");
  for (const auto& [text, id] : older.items()) {
    if (!id.is_number_integer() || id.get<int64_t>() < first) continue;
    tokens.push_back({id.get<int64_t>(), text, {.type = TokenType::special}});
  }
  return tokens;
}

}  // namespace oq::convert
