#include "runtime/tokenizer/bpe.h"

#include <algorithm>
#include <unordered_map>

#include "runtime/tokenizer/nfc.h"
#include "runtime/tokenizer/utf8.h"

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
  Encoder(const BpeTokenizer& t, TextStart start) : t_(t), start_(start) {}

  std::vector<int32_t> ids;

  void text(std::string_view text) {
    if (t_.nfc_) text = to_nfc(text, normalized_);
    if (t_.byte_fallback_) text = unmarked(text);
    if (wants_space(text)) {
      prefixed_.assign(" ").append(text);
      text = prefixed_;
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

  /// Spaces instead of U+2581: the vocabulary cannot tell them apart.
  std::string_view unmarked(std::string_view text) {
    if (text.find(kSpaceMark) == std::string_view::npos) return text;
    unmarked_.clear();
    for (size_t at = 0; at < text.size();) {
      const size_t mark = std::min(text.find(kSpaceMark, at), text.size());
      unmarked_ += text.substr(at, mark - at);
      if (mark < text.size()) unmarked_ += ' ';
      at = mark + kSpaceMark.size();
    }
    return unmarked_;
  }

  bool wants_space(std::string_view text) const {
    const bool first = ids.empty();  // whatever stood before has left its ids
    if (first && start_ == TextStart::goes_on) return false;
    switch (t_.prefix_space_) {
      case PrefixSpace::never:
        return false;
      case PrefixSpace::missing:
        return text[0] != ' ';
      case PrefixSpace::first:
        return text[0] != ' ' && first;
      case PrefixSpace::always:
        return true;
    }
    return false;
  }

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
    if (t_.byte_fallback_) {
      characters(w);
    } else {
      bytes(w);
    }
    t_.merges_.apply(scratch_, ids);
  }

  void bytes(std::string_view w) {
    for (const char c : w) {
      const int32_t id = t_.byte_ids_[uint8_t(c)];
      if (id >= 0) scratch_.symbols.push_back({id, -1, -1});
    }
  }

  void characters(std::string_view w) {
    for (size_t at = 0; at < w.size();) {
      const size_t n = utf8_step(w, at).bytes;
      const std::string_view character = w.substr(at, n);
      if (const int32_t id = t_.tokens_.find(character); id >= 0) {
        scratch_.symbols.push_back({id, -1, -1});
      } else {
        bytes(character);
      }
      at += n;
    }
  }

  const BpeTokenizer& t_;
  TextStart start_;
  std::string normalized_, unmarked_, prefixed_;  ///< the text in its later forms
  std::vector<std::string_view> words_;
  std::unordered_map<std::string_view, Range> seen_;  ///< where in `ids` a word's tokens stand
  MergeTable::Scratch scratch_;
};

BpeTokenizer::BpeTokenizer(TokenizerData data, const std::string& where)
    : tokens_(indexed(std::move(data.tokens), where)),
      merges_(std::move(data.merges), tokens_, where),
      pretokenizer_(data.patterns, data.byte_patterns, where),
      prefix_space_(data.prefix_space),
      ignore_merges_(data.ignore_merges),
      byte_fallback_(data.byte_fallback),
      nfc_(data.nfc) {
  adds_space_ = byte_fallback_ && prefix_space_ != PrefixSpace::never;
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
  find_bytes(data.unk, where);
  set_ids(data, where);
}

/// With byte_fallback, every byte must have its own token: then nothing is ever unknown.
void BpeTokenizer::find_bytes(int32_t unk, const std::string& where) {
  byte_ids_.fill(-1);
  for (int32_t id = 0; byte_fallback_ && id < tokens_.size(); ++id) {
    if (tokens_.kind(id).type != TokenType::byte) continue;
    const std::string_view byte = tokens_.bytes(id);
    if (byte.size() != 1 || byte_ids_[uint8_t(byte[0])] >= 0) {
      throw Error({.what = "token " + std::to_string(id) + " is no single byte, or comes twice",
                   .where = where});
    }
    byte_ids_[uint8_t(byte[0])] = id;
  }
  for (int b = 0; b < 256; ++b) {
    int32_t& id = byte_ids_[size_t(b)];
    if (byte_fallback_ && id < 0) {
      throw Error({.what = "byte_fallback without a token for byte " + std::to_string(b),
                   .where = where,
                   .expected = "tokens <0x00> to <0xFF>"});
    }
    if (byte_fallback_) continue;
    const char byte = char(b);
    id = tokens_.find({&byte, 1});
    if (id < 0) id = unk;
  }
}

std::vector<int32_t> BpeTokenizer::encode_pieces(std::span<const TextPiece> pieces,
                                                 TextStart start) const {
  Encoder encoder(*this, start);
  added_.split(
      pieces, [&](std::string_view text) { encoder.text(text); },
      [&](int32_t id) { encoder.ids.push_back(id); });
  return std::move(encoder.ids);
}

std::string BpeTokenizer::token_bytes(int32_t id) const {
  check_id(id);
  return tokens_.kind(id).type == TokenType::special ? std::string()
                                                     : std::string(tokens_.bytes(id));
}

std::string BpeTokenizer::token_name(int32_t id) const {
  check_id(id);
  return std::string(tokens_.bytes(id));
}

int32_t BpeTokenizer::find_token(std::string_view name) const {
  const int32_t id = added_.find(name);
  return id >= 0 ? id : tokens_.find(name);
}

}  // namespace oq
