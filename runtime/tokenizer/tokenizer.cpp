#include "runtime/tokenizer/tokenizer.h"

#include "runtime/tokenizer/bpe.h"
#include "runtime/tokenizer/sentencepiece.h"
#include "runtime/tokenizer/tokenizer_data.h"

namespace oq {

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids) text += token_bytes(id);
  if (adds_space_ && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

void Tokenizer::set_ids(const TokenizerData& data, const std::string& where) {
  const auto check = [&](const char* what, int32_t id) {
    if (id >= 0 && id < vocab_size()) return;
    throw Error({.what = std::string(what) + " names a token that is not there",
                 .where = where,
                 .expected = "0 to " + std::to_string(vocab_size() - 1),
                 .found = std::to_string(id)});
  };
  if (data.bos != -1 || data.adds_bos) check("tokenizer.bos", data.bos);
  for (const int32_t id : data.stop_ids) check("tokenizer.stop_ids", id);
  bos_ = data.bos;
  adds_bos_ = data.adds_bos;
  stop_ids_ = data.stop_ids;
}

void Tokenizer::check_id(int32_t id) const {
  if (id >= 0 && id < vocab_size()) return;
  throw Error({.what = "no such token",
               .expected = "0 to " + std::to_string(vocab_size() - 1),
               .found = std::to_string(id)});
}

std::unique_ptr<Tokenizer> make_tokenizer(TokenizerData data, const std::string& where) {
  switch (data.kind) {
    case TokenizerData::Kind::bpe:
      return std::make_unique<BpeTokenizer>(std::move(data), where);
    case TokenizerData::Kind::sentencepiece:
      return std::make_unique<SentencePieceTokenizer>(data, where);
    case TokenizerData::Kind::none:
      break;
  }
  throw Error({.what = "the model has no tokenizer",
               .where = where,
               .hint = "convert it from a checkpoint that carries one"});
}

std::unique_ptr<Tokenizer> Tokenizer::load(const File& file) {
  const std::string path = file.path().string();
  return with_place(path, [&] { return make_tokenizer(TokenizerData::load(file), path); });
}

}  // namespace oq
