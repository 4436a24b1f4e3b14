#include <utility>

#include "runtime/tokenizer/sentencepiece_model.h"
#include "tools/convert/gpt2_files.h"
#include "tools/convert/hf_tokenizer_files.h"
#include "tools/convert/json.h"
#include "tools/convert/tokenizer_import.h"
#include "tools/convert/tokenizer_json.h"
#include "tools/tensor_files/mapped_file.h"

namespace oq::convert {
namespace {

namespace fs = std::filesystem;

/// The folder's tokens behind the pieces of a sentencepiece model.
Vocabulary extra_tokens(const fs::path& folder, size_t pieces) {
  constexpr size_t kMost = 65536;
  std::vector<std::pair<std::string, TokenKind>> tokens;
  for (const AddedToken& token : read_added_tokens(folder, int64_t(pieces))) {
    const size_t i = size_t(token.id) - pieces;
    if (i >= kMost) {
      throw Error({.what = "added token lies far beyond the vocabulary",
                   .where = folder.string(),
                   .expected = "below " + std::to_string(pieces + kMost),
                   .found = std::to_string(token.id)});
    }
    if (i >= tokens.size()) tokens.resize(i + 1, {"", {.type = TokenType::unused}});
    tokens[i] = {token.text, token.kind};
  }
  Vocabulary vocabulary;
  for (const auto& [text, kind] : tokens) vocabulary.add(text, kind);
  return vocabulary;
}

/// With LLaMA's habits, unless the folder says otherwise: <s> goes first, </s> ends an answer.
TokenizerData read_sentencepiece(const fs::path& path) {
  const MappedFile file(path);
  TokenizerData data;
  data.kind = TokenizerData::Kind::sentencepiece;
  data.model.assign(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  const SentencePieceModel model = SentencePieceModel::parse(data.model, path.string());
  data.bos = model.find(model.bos_piece);
  if (const int32_t eos = model.find(model.eos_piece); eos >= 0) data.stop_ids = {eos};
  data.adds_bos = true;
  return data;
}

size_t piece_count(const TokenizerData& data, const std::string& where) {
  if (data.kind != TokenizerData::Kind::sentencepiece) return 0;
  return SentencePieceModel::parse(data.model, where).pieces.size();
}

}  // namespace

TokenizerData import_hf_tokenizer(const fs::path& folder) {
  const fs::path model = folder / "tokenizer.model", text = folder / "tokenizer.json",
                 vocab = folder / "vocab.json";
  if (fs::exists(model)) {
    TokenizerData data = read_sentencepiece(model);
    data.tokens = extra_tokens(folder, piece_count(data, model.string()));
    return with_habits(std::move(data), read_habits(folder, model));
  }
  if (fs::exists(text)) {
    return with_habits(tokenizer_from_json(read_json(text), text.string()),
                       read_habits(folder, text));
  }
  if (fs::exists(vocab) && fs::exists(folder / "merges.txt")) {
    return with_habits(read_gpt2_files(folder), read_habits(folder, vocab));
  }
  return {};
}

bool is_tokenizer_file(const fs::path& path) {
  return path.extension() == ".model" || path.extension() == ".json";
}

TokenizerData import_tokenizer_file(const fs::path& path) {
  TokenizerData data = path.extension() == ".model"
                           ? read_sentencepiece(path)
                           : tokenizer_from_json(read_json(path), path.string());
  TokenizerHabits habits;
  habits.where = path.string();
  return with_habits(std::move(data), habits);
}

void check_vocabulary(const TokenizerData& data, int64_t embedding_rows, const std::string& where) {
  const int64_t tokens = int64_t(piece_count(data, where)) + data.tokens.size();
  if (tokens <= embedding_rows) return;
  throw Error({.what =
                   "vocabulary and embedding disagree: the tokenizer knows more tokens than the "
                   "embedding has rows",
               .where = where,
               .expected = "at most " + std::to_string(embedding_rows) + " tokens",
               .found = std::to_string(tokens),
               .hint = "the tokenizer is of another checkpoint, or the embedding was not resized "
                       "for its added tokens"});
}

}  // namespace oq::convert
