#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "format/file.h"
#include "runtime/tokenizer/merges.h"
#include "runtime/tokenizer/tokenizer.h"
#include "runtime/tokenizer/vocabulary.h"

namespace oq {

/// A tokenizer as importers make it and as .oq stores it.
///
/// Metadata:
///   tokenizer.kind         "bpe", "sentencepiece" or "none"
///   tokenizer.version      1; a reader refuses a higher one
///   tokenizer.bos          id or -1
///   tokenizer.adds_bos     a sequence starts with BOS
///   tokenizer.unk          bpe: the id for bytes that the vocabulary lacks, or -1: they are
///   dropped tokenizer.stop_ids     ids that end an answer tokenizer.patterns,
///   tokenizer.byte_patterns     bpe: see Pretokenizer tokenizer.add_prefix_space    bpe: a text
///   that starts with no space gets one tokenizer.ignore_merges       bpe: a word that is a token
///   is that token, whatever merges say chat.template          a name that ChatTemplate knows, or
///   "unknown"; missing: none chat.template_hash     SHA-256 of the checkpoint's Jinja source
/// Tensors of Kind::bytes, little-endian:
///   tokenizer.tokens       u32 count; for each: u8 kind, u32 length, that many bytes. Kind: bits
///   0-3
///                          TokenType, bit 4 lstrip, bit 5 rstrip, others 0. Ids count from 0, or,
///                          with a sentencepiece model, from its number of pieces on
///   tokenizer.merges       bpe: u32 count; for each, lowest rank first: u32 left id, u32 right id
///   tokenizer.model        sentencepiece: a serialized ModelProto
struct TokenizerData {
  enum class Kind { none, bpe, sentencepiece };

  Kind kind = Kind::none;
  Vocabulary tokens;  ///< need not be indexed
  std::vector<Merge> merges;
  std::vector<std::string> patterns, byte_patterns;
  bool add_prefix_space = false;
  bool ignore_merges = false;
  std::string model;
  int32_t bos = -1;
  bool adds_bos = false;
  int32_t unk = -1;
  std::vector<int32_t> stop_ids;
  std::string chat_template, chat_template_hash;

  /// Adds the metadata and the tensors above.
  void store(Writer& writer) const;
  /// Throws oq::Error when something is missing or damaged; what the ids say to each other is
  /// checked by `make_tokenizer`.
  static TokenizerData load(const File& file);

  /// The three blobs, and back. Parsing throws oq::Error on anything but what the encoder wrote.
  static std::vector<std::byte> encode_tokens(const Vocabulary& tokens);
  static Vocabulary decode_tokens(std::span<const std::byte> bytes, const std::string& where);
  static std::vector<std::byte> encode_merges(std::span<const Merge> merges);
  static std::vector<Merge> decode_merges(std::span<const std::byte> bytes,
                                          const std::string& where);
};

/// Builds the tokenizer after checking everything about it: ids in range, merges that make tokens,
/// patterns that compile. Throws oq::Error naming `where`. Kind::none is an error.
std::unique_ptr<Tokenizer> make_tokenizer(TokenizerData data, const std::string& where);

}  // namespace oq
