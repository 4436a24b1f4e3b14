#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace oq {

/// What a token is to the tokenizer. The numbers are part of the format.
enum class TokenType : uint8_t {
  normal = 0,   ///< a part of text, reached by merges
  special = 1,  ///< control: stands for no text; recognised in text only where that is asked for
  added = 2,    ///< text that is always recognised before anything else
  unused = 3,   ///< a hole in the ids, or a token that no text leads to
  byte = 4,     ///< one byte of a character that has no token (TokenizerData::byte_fallback)
};

struct TokenKind {
  TokenType type = TokenType::normal;
  bool lstrip = false;  ///< takes the white space before it along, where it is recognised
  bool rstrip = false;  ///< and the white space after it
};

/// The tokens of a BPE vocabulary by id, as the bytes they stand for: all in one buffer,
/// with a hash index of ids, about 20 bytes a token.
class Vocabulary {
 public:
  int32_t size() const { return int32_t(kinds_.size()); }
  std::string_view bytes(int32_t id) const {
    return std::string_view(text_).substr(ends_[size_t(id)],
                                          ends_[size_t(id) + 1] - ends_[size_t(id)]);
  }
  TokenKind kind(int32_t id) const { return kinds_[size_t(id)]; }

  /// Gives the token the next id. Throws oq::Error beyond 4 GiB of text.
  void add(std::string_view bytes, TokenKind kind);

  /// Makes `find` possible. Throws oq::Error when two normal tokens are equal, or one is empty.
  void index(const std::string& where);
  /// The id of a normal token, or -1.
  int32_t find(std::string_view bytes) const;

 private:
  std::string text_;
  std::vector<uint32_t> ends_ = {0};  ///< of each token in text_, after a 0
  std::vector<TokenKind> kinds_;
  std::vector<int32_t> slots_;  ///< open addressing, a power of two; -1 = free
};

}  // namespace oq
