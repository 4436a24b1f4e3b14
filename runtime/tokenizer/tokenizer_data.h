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

/// A tokenizer as importers make it and as .oq stores it. format/SPEC.md, "Tokenizers", has the
/// metadata keys and the layout of the blobs.
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
