#include "runtime/tokenizer/added_tokens.h"

#include <algorithm>

#include "format/error.h"
#include "runtime/tokenizer/utf8.h"

namespace oq {

void AddedTokens::add(std::string_view text, int32_t id, TokenKind kind, const std::string& where) {
  if (text.empty() || !entries_.emplace(text, Entry{id, kind}).second) {
    throw Error({.what = "added token " + std::to_string(id) +
                         (text.empty() ? " is empty" : " is there twice"),
                 .where = where,
                 .found = "'" + std::string(text) + "'"});
  }
  std::vector<uint32_t>& lengths = lengths_[uint8_t(text[0])];
  const auto place =
      std::lower_bound(lengths.begin(), lengths.end(), text.size(), std::greater<>());
  if (place == lengths.end() || *place != text.size()) {
    lengths.insert(place, uint32_t(text.size()));
  }
}

int32_t AddedTokens::find(std::string_view text) const {
  const auto it = entries_.find(text);
  return it == entries_.end() ? -1 : it->second.id;
}

std::optional<AddedTokens::Match> AddedTokens::next(std::string_view text, size_t from,
                                                    bool parse_special) const {
  for (size_t at = from; at < text.size(); ++at) {
    for (const uint32_t length : lengths_[uint8_t(text[at])]) {
      if (length > text.size() - at) continue;
      const auto it = entries_.find(text.substr(at, length));
      if (it == entries_.end()) continue;
      const auto& [id, kind] = it->second;
      if (kind.type == TokenType::special && !parse_special) continue;
      Match match{at, at + length, id};
      if (kind.lstrip) match.begin -= trailing_space(text.substr(from, at - from));
      if (kind.rstrip) match.end += leading_space(text.substr(match.end));
      return match;
    }
  }
  return std::nullopt;
}

}  // namespace oq
