#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/vocabulary.h"

namespace oq {

/// The tokens that are recognised in a text before it is cut into words: special ones where that
/// is asked for, added ones always. The leftmost goes first, and of those the longest.
class AddedTokens {
 public:
  /// Throws oq::Error when the text is empty or taken.
  void add(std::string_view text, int32_t id, TokenKind kind, const std::string& where);

  /// The id of the token of exactly this text, or -1.
  int32_t find(std::string_view text) const;

  /// Cuts the pieces' concatenation at these tokens: `on_text(string_view)` for every non-empty
  /// text between them, which is gone after the call, and `on_token(id)` for every token, in order.
  template <class OnText, class OnToken>
  void split(std::span<const TextPiece> pieces, OnText on_text, OnToken on_token) const {
    std::string pending;
    const auto flush = [&] {
      if (!pending.empty()) on_text(std::string_view(pending));
      pending.clear();
    };
    for (const TextPiece& piece : pieces) {
      size_t at = 0;
      while (const auto match = next(piece.text, at, piece.parse_special)) {
        pending += piece.text.substr(at, match->begin - at);
        flush();
        on_token(match->id);
        at = match->end;
      }
      pending += piece.text.substr(at);
    }
    flush();
  }

 private:
  struct Match {
    size_t begin, end;
    int32_t id;
  };
  struct Entry {
    int32_t id;
    TokenKind kind;
  };
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view s) const { return std::hash<std::string_view>()(s); }
  };

  std::optional<Match> next(std::string_view text, size_t from, bool parse_special) const;

  std::unordered_map<std::string, Entry, Hash, std::equal_to<>> entries_;
  std::array<std::vector<uint32_t>, 256> lengths_;  ///< of tokens by first byte, longest first
};

}  // namespace oq
