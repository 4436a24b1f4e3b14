#pragma once

#include <array>

#include "runtime/tokenizer/added_tokens.h"
#include "runtime/tokenizer/merges.h"
#include "runtime/tokenizer/pretokenizer.h"
#include "runtime/tokenizer/tokenizer_data.h"

namespace oq {

/// Byte-level BPE, as GPT-2 (Radford et al. 2019) has it: tokens are byte strings, and every byte
/// that the vocabulary has a token for can be encoded, valid UTF-8 or not.
///
/// A text is cut at added tokens, then into words (Pretokenizer), and each word's bytes are merged.
class BpeTokenizer final : public Tokenizer {
 public:
  /// Throws oq::Error naming `where`. PRECOND: data.kind is bpe.
  BpeTokenizer(TokenizerData data, const std::string& where);

  std::vector<int32_t> encode_pieces(std::span<const TextPiece> pieces) const override;
  std::string token_bytes(int32_t id) const override;
  int32_t vocab_size() const override { return tokens_.size(); }
  int32_t find_token(std::string_view name) const override;

 private:
  class Encoder;

  Vocabulary tokens_;
  MergeTable merges_;
  AddedTokens added_;
  Pretokenizer pretokenizer_;
  std::array<int32_t, 256> byte_ids_;  ///< the token of a single byte, unk, or -1
  bool add_prefix_space_, ignore_merges_;
};

}  // namespace oq
