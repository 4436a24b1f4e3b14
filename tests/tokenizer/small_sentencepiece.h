#pragma once

#include <cstdio>

#include "runtime/tokenizer/sentencepiece_model.h"
#include "runtime/tokenizer/tokenizer_data.h"

namespace oq::test {

/// <unk> <s> </s>, 256 bytes from 3 on, then from 259 on: pieces with falling scores.
inline SentencePieceModel small_sentencepiece() {
  SentencePieceModel m;
  m.algorithm = SentencePieceModel::bpe;
  m.byte_fallback = true;
  m.remove_extra_whitespaces = false;
  m.pieces = {{"<unk>", 0, SentencePieceModel::unknown},
              {"<s>", 0, SentencePieceModel::control},
              {"</s>", 0, SentencePieceModel::control}};
  for (int b = 0; b < 256; ++b) {
    char text[8];
    std::snprintf(text, sizeof(text), "<0x%02X>", unsigned(b));
    m.pieces.push_back({text, 0, SentencePieceModel::byte});
  }
  float score = 0;
  for (const char* p : {"\u2581a", "ab", "\u2581", "a", "b"}) m.pieces.push_back({p, --score});
  return m;
}

inline TokenizerData data_of(const SentencePieceModel& model) {
  TokenizerData d;
  d.kind = TokenizerData::Kind::sentencepiece;
  d.model = model.serialize();
  return d;
}

}  // namespace oq::test
