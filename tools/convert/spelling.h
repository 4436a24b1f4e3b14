#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/tokenizer/tokenizer_data.h"

namespace oq::convert {

/// How a checkpoint writes the bytes of normal tokens.
enum class Spelling {
  byte_level,  ///< in GPT-2's alphabet, which gives every byte a printable character
  marked,      ///< as they are, with U+2581 for a space, and <0x00> to <0xFF> for single bytes
};

/// A token as a checkpoint writes it: normal ones in its spelling, others as themselves.
struct SourceToken {
  std::string_view text;
  TokenKind kind;
};

/// The bytes that a text in GPT-2's alphabet stands for; nothing where it has other characters.
std::optional<std::string> from_byte_level(std::string_view text);

/// The tokens by id, indexed. Throws oq::Error on a normal token that its spelling does not allow.
Vocabulary bpe_vocabulary(std::span<const SourceToken> tokens, Spelling spelling,
                          const std::string& where);

/// Merges by rank. Throws oq::Error, with its place in the list from 0 on, when one names a token
/// that is not there. Those around special and added tokens are left out: such tokens are
/// recognised before any merge could make them, and what a user types must not become a special
/// one. So are those that no text leads to.
std::vector<Merge> bpe_merges(std::span<const std::pair<std::string_view, std::string_view>> merges,
                              const Vocabulary& tokens, Spelling spelling,
                              const std::string& where);

/// "a b" in two. Throws oq::Error when there is no space between two texts.
std::pair<std::string_view, std::string_view> split_merge(std::string_view merge,
                                                          const std::string& where);

}  // namespace oq::convert
