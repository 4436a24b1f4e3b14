#include "runtime/tokenizer/vocabulary.h"

#include <bit>
#include <functional>
#include <limits>

#include "format/error.h"

namespace oq {

void Vocabulary::add(std::string_view bytes, TokenKind kind) {
  if (bytes.size() > std::numeric_limits<uint32_t>::max() - text_.size() ||
      kinds_.size() >= size_t(std::numeric_limits<int32_t>::max())) {
    throw Error({.what = "vocabulary is too large", .expected = "less than 4 GiB of token text"});
  }
  text_ += bytes;
  ends_.push_back(uint32_t(text_.size()));
  kinds_.push_back(kind);
}

void Vocabulary::index(const std::string& where) {
  slots_.assign(std::bit_ceil(kinds_.size() * 2 + 1), -1);
  const size_t mask = slots_.size() - 1;
  for (int32_t id = 0; id < size(); ++id) {
    if (kinds_[size_t(id)].type != TokenType::normal) continue;
    const std::string_view token = bytes(id);
    if (token.empty()) {
      throw Error({.what = "token " + std::to_string(id) + " is empty", .where = where});
    }
    size_t slot = std::hash<std::string_view>()(token) & mask;
    for (; slots_[slot] >= 0; slot = (slot + 1) & mask) {
      if (bytes(slots_[slot]) != token) continue;
      throw Error({.what = "tokens " + std::to_string(slots_[slot]) + " and " + std::to_string(id) +
                           " are equal",
                   .where = where});
    }
    slots_[slot] = id;
  }
}

int32_t Vocabulary::find(std::string_view token) const {
  if (slots_.empty()) return -1;
  const size_t mask = slots_.size() - 1;
  size_t slot = std::hash<std::string_view>()(token) & mask;
  for (; slots_[slot] >= 0; slot = (slot + 1) & mask) {
    if (bytes(slots_[slot]) == token) return slots_[slot];
  }
  return -1;
}

}  // namespace oq
