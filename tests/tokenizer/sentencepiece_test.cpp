// Sentencepiece models of our own, damaged ones, and LLaMA-2's rebuilt from its pieces.

#include <cmath>

#include <doctest/doctest.h>

#include "tests/tokenizer/real_vocabularies.h"
#include "tests/tokenizer/small_sentencepiece.h"
#include "tests/tokenizer/vocabularies.h"
#include "tools/convert/json.h"

namespace {

using oq::SentencePieceModel;
using oq::TokenizerData;
using oq::test::data_of;
using oq::test::small_sentencepiece;
using Ids = std::vector<int32_t>;

std::unique_ptr<oq::Tokenizer> make(const SentencePieceModel& model) {
  return oq::make_tokenizer(data_of(model), "test");
}

}  // namespace

TEST_CASE("a small model encodes, and its bytes come back") {
  const auto t = make(small_sentencepiece());
  CHECK(t->encode("ab", false) == Ids{259, 263});  // "_a" ranks before "ab"
  CHECK(t->encode("bab", false) == Ids{261, 263, 260});
  CHECK(t->encode("\xC3\xA9", false) == Ids{261, 3 + 0xC3, 3 + 0xA9});
  CHECK(t->encode("", false) == Ids{});
  CHECK(t->token_bytes(259) == " a");
  CHECK(t->token_bytes(3 + 0x41) == "A");
  CHECK(t->token_bytes(1) == "");
  CHECK(t->decode(Ids{1, 259, 263}) == "ab");
  CHECK(t->find_token("ab") == 260);
  CHECK(t->find_token("</s>") == 2);
  CHECK(t->find_token("nope") == -1);
  CHECK(t->vocab_size() == 264);
  CHECK_THROWS_AS(t->token_bytes(264), oq::Error);
  const std::string nul("a\0b", 3);
  CHECK(t->decode(t->encode(nul, false)) == nul);
  for (const std::string text : {"a\xFF"
                                 "b",
                                 "\xE2\x82", "  a  ", " ", "\xED\xA0\x80\n"}) {
    CHECK(t->decode(t->encode(text, false)) == text);
  }
}

TEST_CASE("a text that goes on gets no space before it, one behind a token does") {
  const auto goes_on = oq::TextStart::goes_on;
  SentencePieceModel model = small_sentencepiece();
  CHECK(make(model)->encode("ab", false, goes_on) == Ids{260});
  CHECK(make(model)->encode(" a", false, goes_on) == Ids{259});
  CHECK(make(model)->encode(" ", false, goes_on) == Ids{261});
  CHECK(make(model)->encode("b</s>b", true, goes_on) == Ids{263, 2, 261, 263});
  CHECK(make(model)->encode("</s>b", true, goes_on) == Ids{2, 261, 263});
  model.remove_extra_whitespaces = true;  // then it is the library's space
  CHECK(make(model)->encode("ab", false) == Ids{259, 263});
  CHECK(make(model)->encode("ab", false, goes_on) == Ids{260});
  CHECK(make(model)->encode("  a", false, goes_on) == Ids{259});
  CHECK(make(model)->encode("b</s>b", true, goes_on) == Ids{263, 2, 261, 263});
}

TEST_CASE("special tokens of the model and behind it") {
  TokenizerData data = data_of(small_sentencepiece());
  data.tokens.add("<|im_end|>", {.type = oq::TokenType::special});
  data.tokens.add("<tag>", {.type = oq::TokenType::added});
  const auto t = oq::make_tokenizer(data, "test");
  CHECK(t->vocab_size() == 266);
  CHECK(t->encode("a</s>b<|im_end|>", true) == Ids{259, 2, 261, 263, 264});
  CHECK(t->encode("</s>", false).size() == 5);
  CHECK(t->encode("a<tag>", false) == Ids{259, 265});
  CHECK(t->token_bytes(264) == "");
  CHECK(t->token_bytes(265) == "<tag>");
}

TEST_CASE("without byte pieces, what is unknown is unknown") {
  SentencePieceModel m = small_sentencepiece();
  m.byte_fallback = false;
  m.pieces.erase(m.pieces.begin() + 3, m.pieces.begin() + 259);
  CHECK(make(m)->encode("a\xFF", false) == Ids{3, 0});
}

TEST_CASE("a model is what it was after its bytes") {
  const SentencePieceModel m = small_sentencepiece();
  const std::string bytes = m.serialize();
  const SentencePieceModel back = SentencePieceModel::parse(bytes, "test");
  CHECK(back.serialize() == bytes);
  CHECK(back.byte_fallback);
  CHECK(back.algorithm == SentencePieceModel::bpe);
}

TEST_CASE("a model cut anywhere is refused or is another model, and nothing crashes") {
  TokenizerData data = data_of(small_sentencepiece());
  const std::string bytes = data.model;
  size_t refused = 0;
  for (size_t n = 0; n < bytes.size(); ++n) {
    data.model = bytes.substr(0, n);
    try {
      oq::make_tokenizer(data, "test")->encode("ab \xFF", false);
    } catch (const oq::Error&) {
      ++refused;
    }
  }
  // Protobuf has no end mark: a cut between two fields leaves a shorter model.
  CHECK(refused > bytes.size() - 300);
}

TEST_CASE("a model with a wrong byte anywhere is refused or is another model") {
  TokenizerData data = data_of(small_sentencepiece());
  const std::string bytes = data.model;
  size_t survived = 0;
  for (size_t n = 0; n < bytes.size(); ++n) {
    for (const char flip : {'\x01', '\x80'}) {
      data.model = bytes;
      data.model[n] = char(data.model[n] ^ flip);
      try {
        const auto t = oq::make_tokenizer(data, "test");
        t->decode(t->encode("ab \xFF", true));
        ++survived;
      } catch (const oq::Error&) {
      }
    }
  }
  CHECK(survived < 2 * bytes.size());
}

TEST_CASE("models that cannot be are refused") {
  const auto refused = [](auto change) {
    SentencePieceModel m = small_sentencepiece();
    change(m);
    CHECK_THROWS_AS(make(m), oq::Error);
  };
  refused([](auto& m) { m.pieces.clear(); });
  refused([](auto& m) { m.pieces[0].type = SentencePieceModel::normal; });  // no unknown
  refused([](auto& m) { m.pieces[1].type = SentencePieceModel::unknown; });
  refused([](auto& m) { m.pieces[260].text = ""; });
  refused([](auto& m) { m.pieces[260].text = std::string("a\0b", 3); });
  refused([](auto& m) { m.pieces[260].text = "a"; });  // twice
  refused([](auto& m) { m.pieces[260].score = std::nanf(""); });
  refused([](auto& m) { m.pieces[260].type = SentencePieceModel::Type(9); });
  refused([](auto& m) { m.pieces[5].text = "<0xZZ>"; });
  refused([](auto& m) { m.pieces.erase(m.pieces.begin() + 5); });  // 255 byte pieces
  refused([](auto& m) { m.byte_fallback = false; });               // but byte pieces
  refused([](auto& m) { m.algorithm = SentencePieceModel::Algorithm(4); });
  CHECK_THROWS_AS(SentencePieceModel::parse("\xFF\xFF\xFF", "test"), oq::Error);
  CHECK_THROWS_AS(SentencePieceModel::parse("\x0B", "test"), oq::Error);  // a group
  // A normalizer with a character map: field 3 of the model holds field 2.
  CHECK_THROWS_WITH_AS(
      SentencePieceModel::parse(small_sentencepiece().serialize() + "\x1A\x05\x12\x03map", "test"),
      doctest::Contains("normalizer"), oq::Error);
}

TEST_CASE("a GGUF vocabulary becomes the model it came from") {
  const std::string bytes = oq::test::sentencepiece_gguf(small_sentencepiece().serialize());
  const oq::convert::GgufFile gguf(std::as_bytes(std::span(bytes)), "test");
  const TokenizerData data = oq::convert::import_gguf_tokenizer(gguf);
  CHECK(data.model == small_sentencepiece().serialize());
  CHECK(data.bos == 1);
  CHECK(data.adds_bos);
  CHECK(data.stop_ids == Ids{2});
}
