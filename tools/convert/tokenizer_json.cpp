#include "tools/convert/tokenizer_json.h"

#include "tools/convert/json_reader.h"
#include "tools/convert/pretokenizer_json.h"
#include "tools/convert/token_table.h"

namespace oq::convert {
namespace {

using nlohmann::json;

void check_model(const JsonReader& in, const json& model) {
  const std::string_view type = in.text(model, "type");
  if (type != "BPE" && !(type.empty() && !in.at(model, "merges").is_null())) {
    throw in.error("model.type", "is not one that OQ runs", "'" + std::string(type) + "'",
                   "OQ runs BPE from tokenizer.json, and sentencepiece from tokenizer.model");
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!in.text(model, key).empty()) {
      throw in.error(std::string("model.") + key, "is not supported",
                     "'" + std::string(in.text(model, key)) + "'");
    }
  }
  // With byte_fallback nothing is unknown.
  if (in.flag(model, "fuse_unk", false) && !in.at(model, "unk_token").is_null() &&
      !in.flag(model, "byte_fallback", false)) {
    throw in.error("model.fuse_unk", "is not supported");
  }
}

std::vector<SourceToken> read_tokens(const JsonReader& in, const json& root, const json& vocab) {
  static const json kNone = json::array();
  const json& added = in.at(root, "added_tokens").is_null() ? kNone : in.list(root, "added_tokens");
  TokenTable table(in, vocab.size() + added.size());
  for (const auto& [text, id] : vocab.items()) table.add(id, "model.vocab", {text, {}});
  for (const json& token : added) {
    const std::string_view text = in.text(token, "content");
    if (in.flag(token, "single_word", false)) {
      throw in.error("added_tokens", "has a single_word token, which OQ does not run",
                     "'" + std::string(text) + "'");
    }
    table.put(in.at(token, "id"), "added_tokens",
              {text,
               {in.flag(token, "special", false) ? TokenType::special : TokenType::added,
                in.flag(token, "lstrip", false), in.flag(token, "rstrip", false)}});
  }
  return table.tokens();
}

std::vector<Merge> read_merges(const JsonReader& in, const json& model, const Vocabulary& tokens,
                               Spelling spelling) {
  std::vector<std::pair<std::string_view, std::string_view>> merges;
  for (const json& merge : in.list(model, "merges")) {
    if (merge.is_string()) {
      merges.push_back(split_merge(merge.get_ref<const std::string&>(), in.where()));
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      merges.emplace_back(merge[0].get_ref<const std::string&>(),
                          merge[1].get_ref<const std::string&>());
    } else {
      throw in.error("model.merges", "has an element that is neither \"a b\" nor [\"a\", \"b\"]",
                     merge.type_name());
    }
  }
  return bpe_merges(merges, tokens, spelling, in.where());
}

/// A TemplateProcessing whose single sequence starts with a special token adds BOS.
void read_post_processor(const JsonReader& in, const json& node, TokenizerData& data) {
  if (node.is_null()) return;
  const std::string_view type = in.text(node, "type");
  if (type == "Sequence") {
    for (const json& part : in.list(node, "processors")) read_post_processor(in, part, data);
  }
  if (type != "TemplateProcessing") return;
  const json& single = in.list(node, "single");
  if (single.empty()) return;
  const json& first = in.at(single[0], "SpecialToken");
  if (first.is_null()) return;
  const std::string name(in.text(first, "id"));
  const json& ids = in.list(in.at(in.at(node, "special_tokens"), name.c_str()), "ids");
  if (ids.size() != 1) throw in.error("post_processor", "starts with more than one token");
  data.bos = int32_t(in.id(ids[0], "post_processor", size_t(data.tokens.size())));
  data.adds_bos = true;
}

}  // namespace

TokenizerData tokenizer_from_json(const json& root, const std::string& where) {
  const JsonReader in(where);
  const json& model = in.at(root, "model");
  if (!model.is_object()) throw in.error("model", "is missing");
  check_model(in, model);
  const json& vocab = in.at(model, "vocab");
  if (!vocab.is_object()) throw in.error("model.vocab", "is not an object", vocab.type_name());

  TokenizerData data;
  data.kind = TokenizerData::Kind::bpe;
  data.byte_fallback = in.flag(model, "byte_fallback", false);
  const Spelling spelling = data.byte_fallback ? Spelling::marked : Spelling::byte_level;
  read_pretokenization(in, root, spelling).move_to(data);
  data.ignore_merges = in.flag(model, "ignore_merges", false);
  data.tokens = bpe_vocabulary(read_tokens(in, root, vocab), spelling, where);
  data.merges = read_merges(in, model, data.tokens, spelling);
  if (const std::string_view unk = in.text(model, "unk_token"); !unk.empty()) {
    for (int32_t id = 0; id < data.tokens.size(); ++id) {
      if (data.tokens.bytes(id) == unk) data.unk = id;
    }
  }
  read_post_processor(in, in.at(root, "post_processor"), data);
  return data;
}

}  // namespace oq::convert
