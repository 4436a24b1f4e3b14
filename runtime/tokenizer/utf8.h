#pragma once

#include <cstddef>
#include <string_view>

namespace oq {

/// U+2581, which stands for a space in the pieces of sentencepiece, and in merges made of them.
inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";

/// What stands at one place of a byte string.
struct Utf8Step {
  enum Status { valid, invalid, incomplete } status;
  /// Of the character; of the bytes that are replaced together where it is invalid (the maximal
  /// subpart, Unicode 15 section 3.9); of what there is where the text ends inside a character.
  size_t bytes;
};

/// PRECOND: at < text.size(). Surrogates, overlong forms and code points beyond U+10FFFF are
/// invalid (RFC 3629).
Utf8Step utf8_step(std::string_view text, size_t at);

/// Bytes of the longest valid UTF-8 at the start of `text`.
size_t valid_utf8(std::string_view text);

/// Bytes of Unicode white space (the property White_Space) at the start and at the end of `text`.
size_t leading_space(std::string_view text);
size_t trailing_space(std::string_view text);

}  // namespace oq
