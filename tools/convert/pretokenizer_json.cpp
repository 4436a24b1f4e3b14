#include "tools/convert/pretokenizer_json.h"

#include "runtime/tokenizer/utf8.h"

namespace oq::convert {
namespace {

using nlohmann::json;

std::string quoted(std::string_view text) { return "'" + std::string(text) + "'"; }

/// What both spellings have in common: sequences, and the normalizer that any text may go through.
class RulesReader {
 public:
  explicit RulesReader(const JsonReader& in) : in_(in) {}
  virtual ~RulesReader() = default;

  Pretokenization read(const json& root) {
    visit_normalizer(in_.at(root, "normalizer"));
    visit(in_.at(root, "pre_tokenizer"));
    finish();
    return std::move(result_);
  }

 protected:
  virtual void normalizer(const json& node, std::string_view type) {
    (void)node;
    throw in_.error("normalizer", "is not supported", quoted(type),
                    "OQ runs NFC; LLaMA-2's Prepend and Replace belong to byte_fallback");
  }
  virtual void pretokenizer(const json& node, std::string_view type) = 0;
  virtual void finish() = 0;

  const JsonReader& in_;
  Pretokenization result_;

 private:
  void visit_normalizer(const json& node) {
    if (node.is_null()) return;
    const std::string_view type = in_.text(node, "type");
    if (type == "Sequence") {
      for (const json& part : in_.list(node, "normalizers")) visit_normalizer(part);
    } else if (type == "NFC") {
      result_.nfc = true;
    } else {
      normalizer(node, type);
    }
  }

  void visit(const json& node) {
    if (node.is_null()) return;
    const std::string_view type = in_.text(node, "type");
    if (type == "Sequence") {
      for (const json& part : in_.list(node, "pretokenizers")) visit(part);
    } else {
      pretokenizer(node, type);
    }
  }
};

/// Byte-level BPE: patterns before ByteLevel see characters, those behind it bytes.
class ByteLevelReader final : public RulesReader {
 public:
  using RulesReader::RulesReader;

 private:
  void pretokenizer(const json& node, std::string_view type) override {
    if (type == "ByteLevel") {
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
      throw in_.error("pre_tokenizer", "is of a type that OQ does not run", quoted(type),
                      "OQ runs Sequence, ByteLevel, Split, Digits and Punctuation, and Metaspace "
                      "with byte_fallback");
    }
  }

  void finish() override {
    if (mapped_) return;
    throw in_.error("pre_tokenizer", "has no ByteLevel", {},
                    "OQ runs byte-level BPE, BPE with byte_fallback, and sentencepiece");
  }

  void byte_level(const json& node) {
    if (mapped_) throw in_.error("pre_tokenizer", "has ByteLevel twice");
    mapped_ = true;
    if (in_.flag(node, "add_prefix_space", true)) {
      if (!result_.patterns.empty()) {
        throw in_.error("pre_tokenizer",
                        "adds a space to every piece: ByteLevel with add_prefix_space stands "
                        "behind another");
      }
      result_.prefix_space = PrefixSpace::missing;
    }
    if (in_.flag(node, "use_regex", true)) result_.patterns.push_back(gpt2_pattern());
  }

  void punctuation(const json& node) {
    const std::string_view behavior = in_.text(node, "behavior");
    const bool contiguous = behavior == "Contiguous";
    if (mapped_ || !(contiguous || behavior.empty() || behavior == "Isolated")) {
      throw in_.error("Punctuation", "works in a way that OQ does not run",
                      mapped_ ? "behind ByteLevel" : quoted(behavior));
    }
    result_.patterns.push_back(punctuation_pattern(contiguous));
  }

  void split(const json& node) {
    const std::string_view behavior = in_.text(node, "behavior");
    const bool invert = in_.flag(node, "invert", false);
    // "Removed" with invert keeps the matches and drops the gaps; the patterns that are used with
    // it (tiktoken's) leave none.
    if (behavior != "Isolated" && !(behavior == "Removed" && invert)) {
      throw in_.error("Split", "has a behavior that OQ does not run", quoted(behavior),
                      "OQ runs Isolated");
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
                      quoted(regex.empty() ? literal : regex));
    }
  }

  bool mapped_ = false;  ///< ByteLevel was there: what follows sees bytes
};

/// BPE with byte_fallback: spaces become U+2581 in the normalizer (LLaMA-2, Mixtral) or in
/// Metaspace (Mistral v0.3). In OQ's terms the tokens have spaces, and the text keeps its own.
class MarkedReader final : public RulesReader {
 public:
  using RulesReader::RulesReader;

 private:
  void normalizer(const json& node, std::string_view type) override {
    if (type == "Prepend") {
      if (in_.text(node, "prepend") != kSpaceMark) {
        throw in_.error("Prepend", "puts something else than U+2581 before a text",
                        quoted(in_.text(node, "prepend")));
      }
      result_.prefix_space = PrefixSpace::always;
    } else if (type == "Replace") {
      if (in_.text(in_.at(node, "pattern"), "String") != " " ||
          in_.text(node, "content") != kSpaceMark) {
        throw in_.error("Replace", "does something else than writing spaces as U+2581");
      }
      marks_ = true;
    } else {
      throw in_.error("normalizer", "is not supported", quoted(type),
                      "OQ runs NFC, Prepend and Replace");
    }
  }

  void pretokenizer(const json& node, std::string_view type) override {
    if (type != "Metaspace") {
      throw in_.error("pre_tokenizer", "is of a type that OQ does not run with byte_fallback",
                      quoted(type), "OQ runs Metaspace");
    }
    if (in_.text(node, "replacement") != kSpaceMark) {
      throw in_.error("Metaspace", "writes spaces as something else than U+2581",
                      quoted(in_.text(node, "replacement")));
    }
    marks_ = true;
    // A prefix that the normalizer has put there already counts.
    if (result_.prefix_space == PrefixSpace::never) result_.prefix_space = prefix(node);
    // Split: every space starts a word.
    if (in_.flag(node, "split", true)) result_.patterns.push_back(to_pcre2(" [^ ]*", in_.where()));
  }

  PrefixSpace prefix(const json& node) const {
    const std::string_view scheme = in_.text(node, "prepend_scheme");
    if (!in_.flag(node, "add_prefix_space", true) || scheme == "never") return PrefixSpace::never;
    if (scheme == "first") return PrefixSpace::first;
    if (scheme == "always" || scheme.empty()) return PrefixSpace::missing;
    throw in_.error("Metaspace", "has a prepend_scheme that OQ does not know", quoted(scheme));
  }

  void finish() override {
    if (marks_) return;
    throw in_.error(
        "model.byte_fallback", "is set, but nothing writes spaces as U+2581", {},
        "put the checkpoint's tokenizer.model into the folder, or convert a GGUF of it");
  }

  bool marks_ = false;
};

}  // namespace

Pretokenization read_pretokenization(const JsonReader& in, const json& root, Spelling spelling) {
  if (spelling == Spelling::marked) return MarkedReader(in).read(root);
  return ByteLevelReader(in).read(root);
}

}  // namespace oq::convert
