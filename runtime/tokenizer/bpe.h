#pragma once

#include <array>

#include "runtime/tokenizer/added_tokens.h"
#include "runtime/tokenizer/merges.h"
#include "runtime/tokenizer/pretokenizer.h"
#include "runtime/tokenizer/tokenizer_data.h"

namespace oq {

/// Byte pair encoding by a list of merges, in the two forms that tokenizer.json has. Tokens are
/// byte strings.
///
/// Byte-level (Radford et al. 2019): merging starts from bytes, and every byte that the vocabulary
/// has a token for can be encoded, valid UTF-8 or not. With byte_fallback (LLaMA-2's, Mistral's):
/// it starts from characters, those without a token become their bytes' tokens, which no merge
/// joins, and U+2581 is a space.
///
/// A text is cut at added tokens, normalized, given its prefix space, cut into words
/// (Pretokenizer), and each word is merged.
class BpeTokenizer final : public Tokenizer {
 public:
  /// Throws oq::Error naming `where`. PRECOND: data.kind is bpe.
  BpeTokenizer(TokenizerData data, const std::string& where);

  std::vector<int32_t> encode_pieces(std::span<const TextPiece> pieces,
                                     TextStart start) const override;
  std::string token_bytes(int32_t id) const override;
  int32_t vocab_size() const override { return tokens_.size(); }
  std::string token_name(int32_t id) const override;
  int32_t find_token(std::string_view name) const override;

 private:
  class Encoder;

  void find_bytes(int32_t unk, const std::string& where);

  Vocabulary tokens_;
  MergeTable merges_;
  AddedTokens added_;
  Pretokenizer pretokenizer_;
  std::array<int32_t, 256> byte_ids_;  ///< the token of a single byte, unk, or -1
  PrefixSpace prefix_space_;
  bool ignore_merges_, byte_fallback_, nfc_;
};

}  // namespace oq
