#include "runtime/tokenizer/sentencepiece_model.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "format/bytes.h"

namespace oq {
namespace {

// Field numbers of sentencepiece_model.proto.
namespace field {
constexpr uint32_t kPieces = 1, kTrainer = 2, kNormalizer = 3;
constexpr uint32_t kText = 1, kScore = 2, kType = 3;
constexpr uint32_t kModelType = 3, kVocabSize = 4, kWhitespaceSuffix = 24, kByteFallback = 35,
                   kUnkId = 40, kBosId = 41, kEosId = 42, kPadId = 43, kUnkPiece = 45,
                   kBosPiece = 46, kEosPiece = 47;
constexpr uint32_t kName = 1, kCharsMap = 2, kDummyPrefix = 3, kRemoveSpaces = 4, kEscapeSpaces = 5;
}  // namespace field

enum Wire : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

/// Walks the fields of one protobuf message
/// (protobuf.dev/programming-guides/encoding).
class MessageReader {
 public:
  MessageReader(std::string_view bytes, const std::string& where)
      : in_(std::as_bytes(std::span(bytes)), where), where_(where) {}

  uint32_t number = 0;
  Wire wire = kVarint;
  uint64_t value = 0;      ///< of a varint or a fixed field
  std::string_view bytes;  ///< of a length-delimited field

  bool next() {
    if (in_.left() == 0) return false;
    const uint64_t key = varint();
    number = uint32_t(key >> 3);
    wire = Wire(key & 7);
    if (number == 0 || key >> 32 != 0) throw damaged("a field without a number");
    switch (wire) {
      case kVarint:
        value = varint();
        break;
      case kFixed64:
        value = in_.read<uint64_t>();
        break;
      case kFixed32:
        value = in_.read<uint32_t>();
        break;
      case kBytes: {
        const auto part = in_.take(varint());
        bytes = {reinterpret_cast<const char*>(part.data()), part.size()};
        break;
      }
      default:
        throw damaged("wire type " + std::to_string(wire));
    }
    return true;
  }

  bool is(uint32_t n, Wire w) const { return number == n && wire == w; }

 private:
  uint64_t varint() {
    uint64_t result = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const uint8_t byte = in_.read<uint8_t>();
      result |= uint64_t(byte & 0x7F) << shift;
      if (byte < 0x80) return result;
    }
    throw damaged("a number of more than ten bytes");
  }

  Error damaged(const std::string& found) const {
    return Error({.what = "is no sentencepiece model",
                  .where = where_,
                  .found = found,
                  .hint = "the file is damaged, or not what its name says"});
  }

  ByteReader in_;
  const std::string& where_;
};

class MessageWriter {
 public:
  std::string out;

  void number(uint32_t field, uint64_t value) {
    varint(uint64_t(field) << 3 | kVarint);
    varint(value);
  }
  void bytes(uint32_t field, std::string_view value) {
    varint(uint64_t(field) << 3 | kBytes);
    varint(value.size());
    out += value;
  }
  void real(uint32_t field, float value) {
    varint(uint64_t(field) << 3 | kFixed32);
    char raw[4];
    std::memcpy(raw, &value, 4);
    out.append(raw, 4);
  }

 private:
  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) out += char(value | 0x80);
    out += char(value);
  }
};

SentencePieceModel::Piece read_piece(std::string_view bytes, const std::string& where) {
  SentencePieceModel::Piece piece;
  for (MessageReader in(bytes, where); in.next();) {
    if (in.is(field::kText, kBytes)) piece.text = in.bytes;
    if (in.is(field::kScore, kFixed32)) piece.score = std::bit_cast<float>(uint32_t(in.value));
    if (in.is(field::kType, kVarint)) {
      piece.type = SentencePieceModel::Type(in.value <= 6 ? int32_t(in.value) : 0);
    }
  }
  return piece;
}

void read_trainer(SentencePieceModel& model, std::string_view bytes, const std::string& where) {
  for (MessageReader in(bytes, where); in.next();) {
    if (in.is(field::kModelType, kVarint)) {
      if (in.value != SentencePieceModel::unigram && in.value != SentencePieceModel::bpe) {
        throw Error({.what = "sentencepiece model type is not supported",
                     .where = where,
                     .expected = "1 (unigram) or 2 (BPE)",
                     .found = std::to_string(in.value)});
      }
      model.algorithm = SentencePieceModel::Algorithm(in.value);
    }
    if (in.is(field::kByteFallback, kVarint)) model.byte_fallback = in.value != 0;
    if (in.is(field::kWhitespaceSuffix, kVarint)) model.treat_whitespace_as_suffix = in.value != 0;
    if (in.is(field::kBosPiece, kBytes)) model.bos_piece = in.bytes;
    if (in.is(field::kEosPiece, kBytes)) model.eos_piece = in.bytes;
  }
}

void read_normalizer(SentencePieceModel& model, std::string_view bytes, const std::string& where) {
  std::string name;
  bool has_map = false;
  for (MessageReader in(bytes, where); in.next();) {
    if (in.is(field::kName, kBytes)) name = in.bytes;
    if (in.is(field::kCharsMap, kBytes)) has_map = !in.bytes.empty();
    if (in.is(field::kDummyPrefix, kVarint)) model.add_dummy_prefix = in.value != 0;
    if (in.is(field::kRemoveSpaces, kVarint)) model.remove_extra_whitespaces = in.value != 0;
    if (in.is(field::kEscapeSpaces, kVarint)) model.escape_whitespaces = in.value != 0;
  }
  if (has_map) {
    throw Error({.what = "sentencepiece normalizer is not supported",
                 .where = where,
                 .expected = "identity",
                 .found = "'" + name + "' with a character map"});
  }
}

}  // namespace

int32_t SentencePieceModel::find(std::string_view text) const {
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].text == text) return int32_t(i);
  }
  return -1;
}

SentencePieceModel SentencePieceModel::parse(std::string_view bytes, const std::string& where) {
  SentencePieceModel model;
  for (MessageReader in(bytes, where); in.next();) {
    if (in.is(field::kPieces, kBytes)) model.pieces.push_back(read_piece(in.bytes, where));
    if (in.is(field::kTrainer, kBytes)) read_trainer(model, in.bytes, where);
    if (in.is(field::kNormalizer, kBytes)) read_normalizer(model, in.bytes, where);
  }
  model.check(where);
  return model;
}

void SentencePieceModel::check(const std::string& where) const {
  size_t unknowns = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& p = pieces[i];
    const bool sound = !p.text.empty() && p.text.find('\0') == std::string::npos &&
                       std::isfinite(p.score) && p.type >= normal && p.type <= byte;
    if (!sound) {
      throw Error({.what = "sentencepiece piece " + std::to_string(i) +
                           " is empty, holds NUL, or has an impossible score or type",
                   .where = where,
                   .found = "'" + p.text + "', score " + std::to_string(p.score) + ", type " +
                            std::to_string(p.type)});
    }
    unknowns += p.type == unknown;
  }
  if (unknowns != 1) {
    throw Error({.what = "a sentencepiece model has exactly one unknown piece",
                 .where = where,
                 .found = std::to_string(unknowns)});
  }
}

std::string SentencePieceModel::serialize() const {
  MessageWriter model;
  uint64_t unk = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Piece& p = pieces[i];
    if (p.type == unknown) unk = i;
    MessageWriter piece;
    piece.bytes(field::kText, p.text);
    piece.real(field::kScore, p.score);
    if (p.type != normal) piece.number(field::kType, uint64_t(p.type));
    model.bytes(field::kPieces, piece.out);
  }
  const auto id = [&](std::string_view text) { return uint64_t(int64_t(find(text))); };
  MessageWriter trainer;
  trainer.number(field::kModelType, uint64_t(algorithm));
  trainer.number(field::kVocabSize, pieces.size());
  trainer.number(field::kWhitespaceSuffix, treat_whitespace_as_suffix);
  trainer.number(field::kByteFallback, byte_fallback);
  trainer.number(field::kUnkId, unk);
  trainer.number(field::kBosId, id(bos_piece));
  trainer.number(field::kEosId, id(eos_piece));
  trainer.number(field::kPadId, uint64_t(-1));
  if (unk < pieces.size()) trainer.bytes(field::kUnkPiece, pieces[unk].text);
  trainer.bytes(field::kBosPiece, bos_piece);
  trainer.bytes(field::kEosPiece, eos_piece);
  model.bytes(field::kTrainer, trainer.out);
  MessageWriter normalizer;
  normalizer.bytes(field::kName, "identity");
  normalizer.number(field::kDummyPrefix, add_dummy_prefix);
  normalizer.number(field::kRemoveSpaces, remove_extra_whitespaces);
  normalizer.number(field::kEscapeSpaces, escape_whitespaces);
  model.bytes(field::kNormalizer, normalizer.out);
  return model.out;
}

}  // namespace oq
