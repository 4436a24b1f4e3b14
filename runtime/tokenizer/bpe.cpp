#include "runtime/tokenizer/bpe.h"

#include <unordered_map>

namespace oq {
namespace {

/// Words up to this long are remembered during one call: text repeats its short words.
constexpr size_t kCachedWord = 64;

Vocabulary indexed(Vocabulary tokens, const std::string& where) {
  tokens.index(where);
  return tokens;
}

}  // namespace

/// One call of `encode_pieces`.
class BpeTokenizer::Encoder {
 public:
  explicit Encoder(const BpeTokenizer& t) : t_(t) {}

  std::vector<int32_t> ids;

  void text(std::string_view text) {
    std::string prefixed;
    if (t_.add_prefix_space_ && text[0] != ' ') {
      prefixed.append(" ").append(text);
      text = prefixed;
    }
    words_.clear();
    seen_.clear();  // its keys are views into the text before
    t_.pretokenizer_.split(text, words_);
    for (const std::string_view w : words_) word(w);
  }

 private:
  struct Range {
    size_t begin, end;
  };

  void word(std::string_view w) {
    if (w.size() > kCachedWord) return merge(w);
    const auto [it, is_new] = seen_.try_emplace(w);
    if (is_new) {
      it->second.begin = ids.size();
      merge(w);
      it->second.end = ids.size();
    } else {
      for (size_t i = it->second.begin; i < it->second.end; ++i) {
        const int32_t id = ids[i];
        ids.push_back(id);
      }
    }
  }

  void merge(std::string_view w) {
    if (t_.ignore_merges_) {
      if (const int32_t id = t_.tokens_.find(w); id >= 0) return ids.push_back(id);
    }
    scratch_.symbols.clear();
    for (const char c : w) {
      const int32_t id = t_.byte_ids_[uint8_t(c)];
      if (id >= 0) scratch_.symbols.push_back({id, -1, -1});
    }
    t_.merges_.apply(scratch_, ids);
  }

  const BpeTokenizer& t_;
  std::vector<std::string_view> words_;
  std::unordered_map<std::string_view, Range> seen_;  ///< where in `ids` a word's tokens stand
  MergeTable::Scratch scratch_;
};

BpeTokenizer::BpeTokenizer(TokenizerData data, const std::string& where)
    : tokens_(indexed(std::move(data.tokens), where)),
      merges_(std::move(data.merges), tokens_, where),
      pretokenizer_(data.patterns, data.byte_patterns, where),
      add_prefix_space_(data.add_prefix_space),
      ignore_merges_(data.ignore_merges) {
  for (int32_t id = 0; id < tokens_.size(); ++id) {
    const TokenKind kind = tokens_.kind(id);
    if (kind.type == TokenType::special || kind.type == TokenType::added) {
      added_.add(tokens_.bytes(id), id, kind, where);
    }
  }
  if (data.unk >= tokens_.size()) {
    throw Error({.what = "tokenizer.unk is no token",
                 .where = where,
                 .expected = "below " + std::to_string(tokens_.size()),
                 .found = std::to_string(data.unk)});
  }
  for (int b = 0; b < 256; ++b) {
    const char byte = char(b);
    const int32_t id = tokens_.find({&byte, 1});
    byte_ids_[size_t(b)] = id >= 0 ? id : data.unk;
  }
  set_ids(data, where);
}

std::vector<int32_t> BpeTokenizer::encode_pieces(std::span<const TextPiece> pieces) const {
  Encoder encoder(*this);
  added_.split(
      pieces, [&](std::string_view text) { encoder.text(text); },
      [&](int32_t id) { encoder.ids.push_back(id); });
  return std::move(encoder.ids);
}

std::string BpeTokenizer::token_bytes(int32_t id) const {
  if (id < 0 || id >= tokens_.size()) {
    throw Error({.what = "no such token",
                 .expected = "0 to " + std::to_string(tokens_.size() - 1),
                 .found = std::to_string(id)});
  }
  return tokens_.kind(id).type == TokenType::special ? std::string()
                                                     : std::string(tokens_.bytes(id));
}

int32_t BpeTokenizer::find_token(std::string_view name) const {
  const int32_t id = added_.find(name);
  return id >= 0 ? id : tokens_.find(name);
}

}  // namespace oq
