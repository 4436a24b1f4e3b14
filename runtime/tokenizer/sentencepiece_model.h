#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace oq {

/// The parts of sentencepiece's ModelProto that decide ids
/// (github.com/google/sentencepiece, src/sentencepiece_model.proto).
///
/// Protobuf's wire format is read and written here by hand, so that the library never sees a byte
/// of a file: it gets what `serialize` makes of checked values.
struct SentencePieceModel {
  enum Type : int32_t {
    normal = 1,
    unknown = 2,
    control = 3,
    user_defined = 4,
    unused = 5,
    byte = 6
  };
  enum Algorithm : int32_t { unigram = 1, bpe = 2 };

  struct Piece {
    std::string text;
    float score = 0;
    Type type = normal;
  };

  std::vector<Piece> pieces;
  Algorithm algorithm = unigram;
  bool byte_fallback = false;  ///< characters without a piece become <0xNN> pieces
  bool treat_whitespace_as_suffix = false;
  bool add_dummy_prefix = true;  ///< a text gets a space before it
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;  ///< spaces are written U+2581 in pieces
  std::string bos_piece = "<s>", eos_piece = "</s>";

  /// The id of a piece by its text, or -1; looks at every piece.
  int32_t find(std::string_view text) const;

  /// Throws oq::Error naming `where` on damaged bytes, and on what OQ cannot run: algorithms other
  /// than BPE and unigram, and normalizers with a character map (they lose what the text was).
  static SentencePieceModel parse(std::string_view bytes, const std::string& where);
  /// Throws oq::Error when the pieces cannot make a vocabulary: empty, holding NUL, of an unknown
  /// type, with a score that is no number, or not exactly one unknown piece.
  void check(const std::string& where) const;
  std::string serialize() const;
};

}  // namespace oq
