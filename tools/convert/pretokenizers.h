#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/tokenizer_data.h"

namespace oq::convert {

/// How a BPE vocabulary wants its text prepared and cut, in .oq's terms (see oq::TokenizerData).
struct Pretokenization {
  std::vector<std::string> patterns, byte_patterns;
  PrefixSpace prefix_space = PrefixSpace::never;
  bool ignore_merges = false;
  bool nfc = false;

  void move_to(TokenizerData& data) {
    data.patterns = std::move(patterns);
    data.byte_patterns = std::move(byte_patterns);
    data.prefix_space = prefix_space;
    data.ignore_merges = ignore_merges;
    data.nfc = nfc;
  }
};

/// What a GGUF's `tokenizer.ggml.pre` stands for; throws oq::Error listing the known names.
Pretokenization known_pretokenization(std::string_view name, const std::string& where);

/// A pattern as the Hugging Face library runs it (Oniguruma, Ruby syntax) in PCRE2's syntax, with
/// the same matches; throws oq::Error naming the part that has no sure translation.
std::string to_pcre2(std::string_view regex, const std::string& where);

/// The pattern that matches exactly this text.
std::string literal_pattern(std::string_view text);

// The library's named pre-tokenizers as patterns.
std::string gpt2_pattern();                   ///< ByteLevel with use_regex
std::string digits_pattern(bool individual);  ///< Digits
std::string punctuation_pattern(bool contiguous);
/// Digits after ByteLevel, where it sees bytes written as characters: those of Latin-1.
std::string byte_digits_pattern(bool individual);

}  // namespace oq::convert
