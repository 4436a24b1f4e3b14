#include "tools/convert/tokenizer_json.h"

#include <algorithm>
#include <map>

#include "format/error.h"
#include "tools/convert/byte_level.h"
#include "tools/convert/pretokenizers.h"

namespace oq::convert {
namespace {

using nlohmann::json;

/// Reads values of the file, naming the key where one is not what it should be.
class Reader {
 public:
  explicit Reader(std::string where) : where_(std::move(where)) {}

  const std::string& where() const { return where_; }

  Error error(const std::string& key, const std::string& what, const std::string& found = {},
              const std::string& hint = {}) const {
    return Error({.what = key + " " + what, .where = where_, .found = found, .hint = hint});
  }

  /// A member, or null where it is missing.
  const json& at(const json& object, const char* key) const {
    static const json kNull;
    if (!object.is_object()) throw error(key, "has no object around it");
    const auto it = object.find(key);
    return it == object.end() ? kNull : *it;
  }
  bool flag(const json& object, const char* key, bool fallback) const {
    const json& v = at(object, key);
    if (v.is_null()) return fallback;
    if (!v.is_boolean()) throw error(key, "is not true or false", v.type_name());
    return v.get<bool>();
  }
  /// "" where it is missing.
  std::string_view text(const json& object, const char* key) const {
    const json& v = at(object, key);
    if (v.is_null()) return {};
    if (!v.is_string()) throw error(key, "is not a text", v.type_name());
    return v.get_ref<const std::string&>();
  }
  const json& list(const json& object, const char* key) const {
    const json& v = at(object, key);
    if (!v.is_array()) throw error(key, "is not a list", v.type_name());
    return v;
  }
  /// An id; `limit` is the number of entries of the file that could have one.
  size_t id(const json& v, const char* key, size_t limit) const {
    if (!v.is_number_integer() || v.get<int64_t>() < 0 || v.get<uint64_t>() >= limit) {
      throw error(key, "holds an id that is no number below " + std::to_string(limit),
                  v.is_number() ? v.dump() : v.type_name());
    }
    return size_t(v.get<uint64_t>());
  }

 private:
  std::string where_;
};

/// Turns `pre_tokenizer` into patterns.
class PretokenizerReader {
 public:
  explicit PretokenizerReader(const Reader& in) : in_(in) {}

  Pretokenization read(const json& node) {
    visit(node);
    if (!mapped_) {
      throw in_.error("pre_tokenizer", "has no ByteLevel", {},
                      "OQ runs byte-level BPE; for LLaMA-2 and its kin, put tokenizer.model into "
                      "the folder");
    }
    return std::move(result_);
  }

 private:
  void visit(const json& node) {
    if (node.is_null()) return;
    const std::string_view type = in_.text(node, "type");
    if (type == "Sequence") {
      for (const json& part : in_.list(node, "pretokenizers")) visit(part);
    } else if (type == "ByteLevel") {
      byte_level(node);
    } else if (type == "Digits") {
      const bool individual = in_.flag(node, "individual_digits", false);
      if (mapped_) {
        result_.byte_patterns.push_back(byte_digits_pattern(individual));
      } else {
        result_.patterns.push_back(digits_pattern(individual));
      }
    } else if (type == "Punctuation") {
      punctuation(node);
    } else if (type == "Split") {
      split(node);
    } else {
      throw in_.error("pre_tokenizer", "is of a type that OQ does not run",
                      "'" + std::string(type) + "'",
                      "OQ runs Sequence, ByteLevel, Split, Digits "
                      "and Punctuation");
    }
  }

  void byte_level(const json& node) {
    if (mapped_) throw in_.error("pre_tokenizer", "has ByteLevel twice");
    mapped_ = true;
    if (in_.flag(node, "add_prefix_space", true)) {
      if (!result_.patterns.empty()) {
        throw in_.error("pre_tokenizer",
                        "adds a space to every piece: ByteLevel with "
                        "add_prefix_space stands behind another");
      }
      result_.add_prefix_space = true;
    }
    if (in_.flag(node, "use_regex", true)) result_.patterns.push_back(gpt2_pattern());
  }

  void punctuation(const json& node) {
    const std::string_view behavior = in_.text(node, "behavior");
    const bool contiguous = behavior == "Contiguous";
    if (mapped_ || !(contiguous || behavior.empty() || behavior == "Isolated")) {
      throw in_.error("Punctuation", "works in a way that OQ does not run",
                      mapped_ ? "behind ByteLevel" : "'" + std::string(behavior) + "'");
    }
    result_.patterns.push_back(punctuation_pattern(contiguous));
  }

  void split(const json& node) {
    const std::string_view behavior = in_.text(node, "behavior");
    const bool invert = in_.flag(node, "invert", false);
    // "Removed" with invert keeps the matches and drops the gaps; the patterns that are used with
    // it (tiktoken's) leave none.
    if (behavior != "Isolated" && !(behavior == "Removed" && invert)) {
      throw in_.error("Split", "has a behavior that OQ does not run",
                      "'" + std::string(behavior) + "'", "OQ runs Isolated");
    }
    const json& pattern = in_.at(node, "pattern");
    const std::string_view literal = in_.text(pattern, "String");
    const std::string_view regex = in_.text(pattern, "Regex");
    if (literal.empty() == regex.empty()) throw in_.error("Split", "has no pattern");
    if (!mapped_) {
      result_.patterns.push_back(literal.empty() ? to_pcre2(regex, in_.where())
                                                 : literal_pattern(literal));
    } else if (regex.find_first_not_of("0123456789[]{},-+") == std::string_view::npos &&
               !regex.empty()) {
      result_.byte_patterns.emplace_back(regex);  // digits are the same among bytes
    } else {
      throw in_.error("Split", "stands behind ByteLevel with more than digits in its pattern",
                      "'" + std::string(regex.empty() ? literal : regex) + "'");
    }
  }

  const Reader& in_;
  Pretokenization result_;
  bool mapped_ = false;  ///< ByteLevel was there: what follows sees bytes
};

void check_model(const Reader& in, const json& model) {
  const std::string_view type = in.text(model, "type");
  if (type != "BPE" && !(type.empty() && !in.at(model, "merges").is_null())) {
    throw in.error("model.type", "is not one that OQ runs", "'" + std::string(type) + "'",
                   "OQ runs byte-level BPE from tokenizer.json, and sentencepiece from "
                   "tokenizer.model");
  }
  if (in.flag(model, "byte_fallback", false)) {
    throw in.error("model.byte_fallback",
                   "is set: this is a sentencepiece vocabulary in BPE's "
                   "clothes",
                   {},
                   "put the checkpoint's tokenizer.model into the folder, or convert "
                   "a GGUF of it");
  }
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!in.text(model, key).empty()) {
      throw in.error(std::string("model.") + key, "is not supported",
                     "'" + std::string(in.text(model, key)) + "'");
    }
  }
  if (in.flag(model, "fuse_unk", false) && !in.at(model, "unk_token").is_null()) {
    throw in.error("model.fuse_unk", "is not supported");
  }
}

void check_normalizer(const Reader& in, const json& node) {
  if (node.is_null()) return;
  const std::string_view type = in.text(node, "type");
  if (type == "Sequence") {
    for (const json& part : in.list(node, "normalizers")) check_normalizer(in, part);
    return;
  }
  throw in.error("normalizer", "is not supported", "'" + std::string(type) + "'",
                 "OQ takes text as it is; a GGUF of the same model leaves the normalizer out");
}

std::vector<SourceToken> read_tokens(const Reader& in, const json& root, const json& vocab) {
  static const json kNone = json::array();
  const json& added = in.at(root, "added_tokens").is_null() ? kNone : in.list(root, "added_tokens");
  // Holes are legal; a hundred of them for every token are not.
  const size_t limit = (vocab.size() + added.size()) * 100;
  std::vector<SourceToken> tokens;
  std::vector<bool> taken;
  const auto place = [&](size_t id) -> SourceToken& {
    if (id >= tokens.size()) {
      tokens.resize(id + 1, {{}, {.type = TokenType::unused}});
      taken.resize(id + 1);
    }
    return tokens[id];
  };
  for (const auto& [text, id] : vocab.items()) {
    const size_t i = in.id(id, "model.vocab", limit);
    place(i) = {text, {}};
    if (taken[i]) throw in.error("model.vocab", "gives one id twice", std::to_string(i));
    taken[i] = true;
  }
  for (const json& token : added) {
    const std::string_view text = in.text(token, "content");
    if (in.flag(token, "single_word", false)) {
      throw in.error("added_tokens", "has a single_word token, which OQ does not run",
                     "'" + std::string(text) + "'");
    }
    const size_t id = in.id(in.at(token, "id"), "added_tokens", limit);
    place(id) = {text,
                 {in.flag(token, "special", false) ? TokenType::special : TokenType::added,
                  in.flag(token, "lstrip", false), in.flag(token, "rstrip", false)}};
  }
  return tokens;
}

std::vector<Merge> read_merges(const Reader& in, const json& model, const Vocabulary& tokens) {
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
  return byte_level_merges(merges, tokens, in.where());
}

/// A TemplateProcessing whose single sequence starts with a special token adds BOS.
void read_post_processor(const Reader& in, const json& node, TokenizerData& data) {
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
  const Reader in(where);
  const json& model = in.at(root, "model");
  if (!model.is_object()) throw in.error("model", "is missing");
  check_model(in, model);
  check_normalizer(in, in.at(root, "normalizer"));
  const json& vocab = in.at(model, "vocab");
  if (!vocab.is_object()) throw in.error("model.vocab", "is not an object", vocab.type_name());

  TokenizerData data;
  data.kind = TokenizerData::Kind::bpe;
  Pretokenization cut = PretokenizerReader(in).read(in.at(root, "pre_tokenizer"));
  data.patterns = std::move(cut.patterns);
  data.byte_patterns = std::move(cut.byte_patterns);
  data.add_prefix_space = cut.add_prefix_space;
  data.ignore_merges = in.flag(model, "ignore_merges", false);
  data.tokens = byte_level_vocabulary(read_tokens(in, root, vocab), where);
  data.merges = read_merges(in, model, data.tokens);
  if (const std::string_view unk = in.text(model, "unk_token"); !unk.empty()) {
    for (int32_t id = 0; id < data.tokens.size(); ++id) {
      if (data.tokens.bytes(id) == unk) data.unk = id;
    }
  }
  read_post_processor(in, in.at(root, "post_processor"), data);
  return data;
}

}  // namespace oq::convert
