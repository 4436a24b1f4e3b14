#include "runtime/tokenizer/sentencepiece.h"

#include <cstdio>

#include <sentencepiece_processor.h>

#include "runtime/tokenizer/utf8.h"

namespace oq {
namespace {

constexpr std::string_view kUnknown = " \xE2\x81\x87 ";  // what the library writes for <unk>

std::string byte_piece(int byte) {
  char text[8];
  std::snprintf(text, sizeof(text), "<0x%02X>", unsigned(byte));
  return text;
}

std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_of(const SentencePieceModel& model,
                                                                    const std::string& where) {
  auto processor = std::make_unique<sentencepiece::SentencePieceProcessor>();
  std::string problem;
  try {
    const auto status = processor->LoadFromSerializedProto(model.serialize());
    if (!status.ok()) problem = status.ToString();
  } catch (const std::exception& e) {
    problem = e.what();
  }
  if (problem.empty()) return processor;
  throw Error({.what = "sentencepiece refuses the model: " + problem,
               .where = where,
               .hint = "the file is damaged, or its vocabulary contradicts itself"});
}

}  // namespace

SentencePieceTokenizer::SentencePieceTokenizer(const TokenizerData& data, const std::string& where)
    : extra_(data.tokens) {
  const SentencePieceModel model = SentencePieceModel::parse(data.model, where);
  load(model, where);
  model_size_ = int32_t(model.pieces.size());
  for (int32_t id = 0; id < model_size_; ++id) {
    const auto& piece = model.pieces[size_t(id)];
    if (piece.type == SentencePieceModel::control || piece.type == SentencePieceModel::unknown) {
      added_.add(piece.text, id, {.type = TokenType::special}, where);
    }
  }
  for (int32_t i = 0; i < extra_.size(); ++i) {
    const TokenKind kind = extra_.kind(i);
    if (kind.type == TokenType::special || kind.type == TokenType::added) {
      added_.add(extra_.bytes(i), model_size_ + i, kind, where);
    }
  }
  for (int b = 0; b < 256; ++b) {
    byte_ids_[size_t(b)] =
        model.byte_fallback ? processor_->PieceToId(byte_piece(b)) : processor_->unk_id();
  }
  set_ids(data, where);
}

SentencePieceTokenizer::~SentencePieceTokenizer() = default;

void SentencePieceTokenizer::load(const SentencePieceModel& model, const std::string& where) {
  escapes_spaces_ = model.escape_whitespaces;
  adds_space_ = model.add_dummy_prefix;
  // The library would put the prefix before every run of valid UTF-8, and not only before the
  // first. Where it also squeezes spaces, only it can do both.
  prefix_is_ours_ = model.add_dummy_prefix && !model.remove_extra_whitespaces &&
                    !model.treat_whitespace_as_suffix;
  SentencePieceModel without = model;
  without.add_dummy_prefix = false;
  processor_ = processor_of(prefix_is_ours_ ? without : model, where);
  // A suffix stands at a text's end, whatever is before it.
  const bool squeezes = model.add_dummy_prefix && !model.treat_whitespace_as_suffix;
  if (squeezes && !prefix_is_ours_) going_on_ = processor_of(without, where);
}

std::vector<int32_t> SentencePieceTokenizer::encode_pieces(std::span<const TextPiece> pieces,
                                                           TextStart start) const {
  std::vector<int32_t> ids;
  const auto part = [&](std::string_view text) {  // behind a token, a text begins
    encode_part(text, ids.empty() ? start : TextStart::begins, ids);
  };
  added_.split(pieces, part, [&](int32_t id) { ids.push_back(id); });
  return ids;
}

void SentencePieceTokenizer::encode_part(std::string_view text, TextStart start,
                                         std::vector<int32_t>& ids) const {
  std::string prefixed;
  if (prefix_is_ours_ && start == TextStart::begins) {
    prefixed.append(" ").append(text);
    text = prefixed;
  }
  // Where the library squeezes spaces, one at the front is what it takes the prefix for.
  const bool goes_on = start == TextStart::goes_on && going_on_ && !text.starts_with(' ');
  const Processor& processor = goes_on ? *going_on_ : *processor_;
  std::vector<int> run;
  while (!text.empty()) {
    const size_t valid = valid_utf8(text);
    const auto status = processor.Encode({text.data(), valid}, &run);
    if (!status.ok()) throw Error({.what = "sentencepiece failed: " + status.ToString()});
    ids.insert(ids.end(), run.begin(), run.end());
    text.remove_prefix(valid);
    if (!text.empty()) {
      ids.push_back(byte_ids_[uint8_t(text[0])]);
      text.remove_prefix(1);
    }
  }
}

std::string SentencePieceTokenizer::token_bytes(int32_t id) const {
  check_id(id);
  if (id >= model_size_) {
    const int32_t i = id - model_size_;
    return extra_.kind(i).type == TokenType::special ? std::string() : std::string(extra_.bytes(i));
  }
  if (processor_->IsControl(id)) return {};
  if (processor_->IsUnknown(id)) return std::string(kUnknown);
  std::string text = processor_->IdToPiece(id);
  if (processor_->IsByte(id)) return {char(std::stoi(text.substr(3, 2), nullptr, 16))};
  if (escapes_spaces_) {
    for (size_t at = 0; (at = text.find(kSpaceMark, at)) != std::string::npos; ++at) {
      text.replace(at, kSpaceMark.size(), " ");
    }
  }
  return text;
}

std::string SentencePieceTokenizer::token_name(int32_t id) const {
  check_id(id);
  return id < model_size_ ? processor_->IdToPiece(id) : std::string(extra_.bytes(id - model_size_));
}

int32_t SentencePieceTokenizer::find_token(std::string_view name) const {
  if (const int32_t id = added_.find(name); id >= 0) return id;
  const int32_t id = processor_->PieceToId({name.data(), name.size()});
  return processor_->IsUnknown(id) ? -1 : id;
}

}  // namespace oq
