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

/// Which texts get a space before them. A text here is what stands between two special tokens.
enum class PrefixSpace {
  never,
  missing,  ///< all that do not start with one
  first,    ///< likewise, but only at the very beginning
  always,   ///< all, whatever they start with
};

/// A tokenizer as importers make it and as .oq stores it. format/SPEC.md, "Tokenizers", has the
/// metadata keys and the layout of the blobs.
struct TokenizerData {
  enum class Kind { none, bpe, sentencepiece };

  Kind kind = Kind::none;
  Vocabulary tokens;  ///< need not be indexed
  std::vector<Merge> merges;
  std::vector<std::string> patterns, byte_patterns;
  PrefixSpace prefix_space = PrefixSpace::never;
  bool ignore_merges = false;
  /// BPE over characters, as sentencepiece has it, and not over bytes: a character without a token
  /// becomes those of its bytes, and U+2581 in a text is a space.
  bool byte_fallback = false;
  bool nfc = false;  ///< texts are brought into Normalization Form C first
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
  static TokenizerData load(const File& file) { return load(file, file.metadata()); }
  /// The same with other metadata than the file's own: to try an edit before it is made.
  static TokenizerData load(const File& file, const Metadata& metadata);

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
