#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "format/file.h"

namespace oq {

struct TokenizerData;

/// A part of a text, and whether special tokens written out in it ("<|im_end|>") become their ids,
/// as a chat template wants, or are plain text, as what a user typed must be.
struct TextPiece {
  std::string_view text;
  bool parse_special = false;
};

/// What stands before a text: nothing, or a text that has its ids already. A space that a
/// vocabulary wants before a text does not stand before one that goes on.
enum class TextStart { begins, goes_on };

/// Text to token ids and back. Immutable after loading: any number of threads may use one.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Ids of the text that the pieces make together, without BOS. A piece's end is no boundary for
  /// the words around it: only special tokens are looked for piece by piece, so that nothing a user
  /// types can be a part of one.
  ///
  /// Any bytes are a text. Byte-level vocabularies with all 256 bytes, and sentencepiece ones with
  /// byte pieces, give them all back in `decode`, whether they are UTF-8 or not.
  virtual std::vector<int32_t> encode_pieces(std::span<const TextPiece> pieces,
                                             TextStart start = TextStart::begins) const = 0;

  /// The same for one piece.
  std::vector<int32_t> encode(std::string_view text, bool parse_special,
                              TextStart start = TextStart::begins) const {
    const TextPiece piece{text, parse_special};
    return encode_pieces({&piece, 1}, start);
  }

  /// The bytes that a token stands for where it goes on a text: a part of a character, perhaps.
  /// Special (control) tokens give nothing. Throws oq::Error on an id outside the vocabulary.
  virtual std::string token_bytes(int32_t id) const = 0;

  virtual int32_t vocab_size() const = 0;

  /// How the vocabulary writes a token, special ones too: what `find_token` takes. Throws oq::Error
  /// on an id outside the vocabulary.
  virtual std::string token_name(int32_t id) const = 0;

  /// The id of a token by its exact bytes ("<|im_end|>"), or -1.
  virtual int32_t find_token(std::string_view name) const = 0;

  /// The text of a whole sequence. Where `encode` puts a space before the text (sentencepiece's
  /// dummy prefix), this takes it off again; a text that only goes on, as an answer streamed token
  /// by token does, is the concatenation of `token_bytes` and keeps its first space.
  std::string decode(std::span<const int32_t> ids) const;

  int32_t bos() const { return bos_; }         ///< -1 where there is none
  bool adds_bos() const { return adds_bos_; }  ///< a sequence starts with BOS
  std::span<const int32_t> stop_ids() const { return stop_ids_; }

  /// The tokenizer inside a .oq file; throws oq::Error when there is none or it is damaged.
  static std::unique_ptr<Tokenizer> load(const File& file);

 protected:
  /// Takes over BOS and stop ids; throws oq::Error naming `where` when they are not below
  /// vocab_size().
  void set_ids(const TokenizerData& data, const std::string& where);

  /// Throws oq::Error on an id outside the vocabulary.
  void check_id(int32_t id) const;

  bool adds_space_ = false;  ///< `encode` puts a space before a text

 private:
  int32_t bos_ = -1;
  bool adds_bos_ = false;
  std::vector<int32_t> stop_ids_;
};

}  // namespace oq
