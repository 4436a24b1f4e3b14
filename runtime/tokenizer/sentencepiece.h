#pragma once

#include <array>
#include <memory>

#include "runtime/tokenizer/added_tokens.h"
#include "runtime/tokenizer/sentencepiece_model.h"
#include "runtime/tokenizer/tokenizer_data.h"

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace oq {

/// A sentencepiece model (Kudo and Richardson 2018, arXiv 1808.06226), run by libsentencepiece,
/// with the tokens that a checkpoint adds behind its pieces.
///
/// A text is cut at added and special tokens first. Each part between them gets the model's dummy
/// prefix, as Meta's and Hugging Face's LLaMA tokenizers do it; the first does not where it goes on
/// a text. Bytes that are not UTF-8 become byte pieces where the model has them, and the unknown
/// piece elsewhere. U+2581 in a text comes back as a space: the model cannot tell them apart.
class SentencePieceTokenizer final : public Tokenizer {
 public:
  /// Throws oq::Error naming `where`. PRECOND: data.kind is sentencepiece.
  SentencePieceTokenizer(const TokenizerData& data, const std::string& where);
  ~SentencePieceTokenizer() override;

  std::vector<int32_t> encode_pieces(std::span<const TextPiece> pieces,
                                     TextStart start) const override;
  std::string token_bytes(int32_t id) const override;
  int32_t vocab_size() const override { return model_size_ + extra_.size(); }
  std::string token_name(int32_t id) const override;
  int32_t find_token(std::string_view name) const override;

 private:
  using Processor = sentencepiece::SentencePieceProcessor;

  void load(const SentencePieceModel& model, const std::string& where);
  void encode_part(std::string_view text, TextStart start, std::vector<int32_t>& ids) const;

  std::unique_ptr<Processor> processor_;
  std::unique_ptr<Processor> going_on_;  ///< the same without prefix, where it is the library's
  int32_t model_size_ = 0;
  Vocabulary extra_;  ///< ids from model_size_ on
  AddedTokens added_;
  std::array<int32_t, 256> byte_ids_;  ///< the byte piece, or the unknown piece
  bool escapes_spaces_ = true;
  bool prefix_is_ours_ = false;  ///< we put the dummy prefix before a part, not the library
};

}  // namespace oq
