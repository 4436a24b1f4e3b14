// Byte-level BPE on small vocabularies of our own, and damaged ones.

#include <random>

#include <doctest/doctest.h>

#include "tests/tokenizer/vocabularies.h"

namespace {

using oq::TokenizerData;
using oq::TokenType;
using Ids = std::vector<int32_t>;

std::unique_ptr<oq::Tokenizer> make(TokenizerData data) {
  return oq::make_tokenizer(std::move(data), "test");
}

/// BPE as its paper has it: the best pair of the whole word, again and again. Quadratic.
Ids slow_bpe(const TokenizerData& data, std::string_view word) {
  Ids ids;
  for (const char c : word) ids.push_back(uint8_t(c));
  while (true) {
    size_t rank = data.merges.size(), at = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      for (size_t r = 0; r < rank; ++r) {
        if (data.merges[r].left == ids[i] && data.merges[r].right == ids[i + 1]) rank = r, at = i;
      }
    }
    if (rank == data.merges.size()) return ids;
    ids[at] = int32_t(256 + rank);
    ids.erase(ids.begin() + std::ptrdiff_t(at) + 1);
  }
}

}  // namespace

TEST_CASE("merges go by rank, then from the left") {
  const auto t = make(oq::test::small_bpe());
  CHECK(t->encode("abc", false) == Ids{257});
  CHECK(t->encode("aab", false) == Ids{'a', 256});  // "ab" ranks before "aa"
  CHECK(t->encode("aaa", false) == Ids{258, 'a'});
  CHECK(t->encode("aaaaaaa", false) == Ids{259, 258, 'a'});
  CHECK(t->encode("", false) == Ids{});
  CHECK(t->encode(std::string(1, '\0'), false) == Ids{0});
  CHECK(t->decode(Ids{257, 262, 'x'}) == "abcx");
  CHECK(t->vocab_size() == 266);
  CHECK(t->find_token("abc") == 257);
  CHECK(t->find_token("<s>") == 262);
  CHECK(t->find_token("nope") == -1);
  CHECK_THROWS_AS(t->token_bytes(266), oq::Error);
  CHECK_THROWS_AS(t->token_bytes(-1), oq::Error);
}

TEST_CASE("the heap finds what the plain algorithm finds") {
  const TokenizerData data = oq::test::small_bpe();
  const auto t = make(data);
  std::mt19937 random(7);
  for (int i = 0; i < 3000; ++i) {
    std::string word;
    for (size_t n = random() % 24; n > 0; --n) word += "aaabbc1 "[random() % 8];
    CAPTURE(word);
    CHECK(t->encode(word, false) == slow_bpe(data, word));
  }
}

TEST_CASE("a long run takes no quadratic time") {
  const auto t = make(oq::test::small_bpe());
  const std::string text(1 << 20, 'a');
  const Ids ids = t->encode(text, false);
  CHECK(ids.size() == text.size() / 4);
  CHECK(t->decode(ids) == text);
}

TEST_CASE("any bytes come back") {
  auto data = oq::test::small_bpe();
  data.patterns = {R"(\p{L}+|\s+|[^\p{L}\s]+)"};
  const auto t = make(std::move(data));
  std::mt19937 random(11);
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    for (size_t n = random() % 40; n > 0; --n) {
      text += (random() % 3) != 0 ? char("a \xC3\xA9\xE6\x97\xA5\xF0"[random() % 8])
                                  : char(random() % 256);
    }
    CHECK(t->decode(t->encode(text, false)) == text);
  }
}

TEST_CASE("special tokens are found where that is asked for, added ones always") {
  const auto t = make(oq::test::small_bpe());
  CHECK(t->encode("a<s>b", true) == Ids{'a', 262, 'b'});
  CHECK(t->encode("<s>", false) == Ids{'<', 's', '>'});
  CHECK(t->encode("<s><s><s>", true) == Ids{263, 262});  // the longest first
  CHECK(t->encode("a<tag>b", false) == Ids{'a', 264, 'b'});
  CHECK(t->encode("x \n<pad>\t y", true) == Ids{'x', 265, 'y'});  // lstrip, rstrip
  CHECK(t->decode(Ids{262, 264, 265}) == "<tag>");
}

TEST_CASE("pieces make one text, and special tokens stay inside one") {
  const auto t = make(oq::test::small_bpe());
  const auto pieces = [&](std::initializer_list<oq::TextPiece> list) {
    return t->encode_pieces({list.begin(), list.size()});
  };
  CHECK(pieces({{"a", true}, {"bc", false}}) == Ids{257});
  CHECK(pieces({{"<s>", false}, {"<s>", true}}) == Ids{'<', 's', '>', 262});
  CHECK(pieces({{"<", true}, {"s>", true}}) == Ids{'<', 's', '>'});
  CHECK(pieces({{"a<s>", true}, {"bc", false}, {"", true}}) == Ids{'a', 262, 'b', 'c'});
}

TEST_CASE("patterns cut words, one after the other") {
  auto data = oq::test::small_bpe();
  data.patterns = {"[0-9]", " ?[a-z]+"};
  const auto t = make(data);
  CHECK(t->encode("11", false) == Ids{'1', '1'});
  CHECK(t->encode("a ab", false) == Ids{'a', ' ', 256});
  CHECK(t->encode("b a", false) == Ids{'b', 260});
  data.patterns = {"b"};
  data.byte_patterns = {"[\\xC3]"};
  CHECK(make(data)->encode("abc\xC3\xA9", false) == Ids{'a', 'b', 'c', 0xC3, 0xA9});
  data.patterns = {"x*"};  // matches of no length cut, and do not loop
  CHECK(make(data)->encode("ab\xC3\xA9", false) == Ids{'a', 'b', 0xC3, 0xA9});
}

TEST_CASE("prefix space and ignore_merges") {
  auto data = oq::test::small_bpe();
  data.prefix_space = oq::PrefixSpace::missing;
  CHECK(make(data)->encode("a", false) == Ids{260});
  CHECK(make(data)->encode(" a", false) == Ids{260});
  CHECK(make(data)->encode("", false) == Ids{});
  CHECK(make(data)->encode("a<s>a", true) == Ids{260, 262, 260});
  data.prefix_space = oq::PrefixSpace::first;
  CHECK(make(data)->encode("a<s>a", true) == Ids{260, 262, 'a'});
  CHECK(make(data)->encode("<s>a", true) == Ids{262, 'a'});
  data.prefix_space = oq::PrefixSpace::always;
  CHECK(make(data)->encode(" a<s>a", true) == Ids{' ', 260, 262, 260});
  for (const auto space : {oq::PrefixSpace::missing, oq::PrefixSpace::always}) {
    data.prefix_space = space;  // no space in the middle of a text
    CHECK(make(data)->encode("a<s>a", true, oq::TextStart::goes_on) == Ids{'a', 262, 260});
    CHECK(make(data)->encode(" b", true, oq::TextStart::goes_on) == Ids{' ', 'b'});
  }
  data.prefix_space = oq::PrefixSpace::first;
  CHECK(make(data)->encode("a<s>a", true, oq::TextStart::goes_on) == Ids{'a', 262, 'a'});
  data = oq::test::small_bpe();
  data.tokens.add("cab", {});  // no merge makes it
  CHECK(make(data)->encode("cab", false) == Ids{'c', 256});
  data.ignore_merges = true;
  CHECK(make(data)->encode("cab", false) == Ids{266});
}

TEST_CASE("bytes without a token become unk, or nothing") {
  TokenizerData data;
  data.kind = TokenizerData::Kind::bpe;
  for (const char* token : {"a", "b", "?"}) data.tokens.add(token, {});
  CHECK(make(data)->encode("axb", false) == Ids{0, 1});
  data.unk = 2;
  CHECK(make(data)->encode("axb", false) == Ids{0, 2, 1});
}

TEST_CASE("blobs come back, and are refused when cut anywhere") {
  const TokenizerData data = oq::test::small_bpe();
  const auto tokens = TokenizerData::encode_tokens(data.tokens);
  const oq::Vocabulary back = TokenizerData::decode_tokens(tokens, "test");
  REQUIRE(back.size() == data.tokens.size());
  for (int32_t id = 0; id < back.size(); ++id) {
    CHECK(back.bytes(id) == data.tokens.bytes(id));
    CHECK(back.kind(id).type == data.tokens.kind(id).type);
    CHECK(back.kind(id).lstrip == data.tokens.kind(id).lstrip);
  }
  for (size_t n = 0; n < tokens.size(); ++n) {
    CHECK_THROWS_AS(TokenizerData::decode_tokens({tokens.data(), n}, "test"), oq::Error);
  }
  const auto merges = TokenizerData::encode_merges(data.merges);
  CHECK(TokenizerData::decode_merges(merges, "test").size() == data.merges.size());
  for (size_t n = 0; n < merges.size(); ++n) {
    CHECK_THROWS_AS(TokenizerData::decode_merges({merges.data(), n}, "test"), oq::Error);
  }
  auto longer = tokens;
  longer.push_back(std::byte{0});
  CHECK_THROWS_AS(TokenizerData::decode_tokens(longer, "test"), oq::Error);
  auto odd = tokens;
  odd[4] = std::byte{9};
  CHECK_THROWS_AS(TokenizerData::decode_tokens(odd, "test"), oq::Error);
}

TEST_CASE("a vocabulary that contradicts itself is refused") {
  const auto refused = [](auto change) {
    TokenizerData data = oq::test::small_bpe();
    change(data);
    CHECK_THROWS_AS(make(std::move(data)), oq::Error);
  };
  refused([](TokenizerData& d) { d.merges.push_back({'a', 999}); });
  refused([](TokenizerData& d) { d.merges.push_back({-1, 'a'}); });
  refused([](TokenizerData& d) { d.merges.push_back({'x', 'y'}); });  // makes no token
  refused([](TokenizerData& d) { d.merges.push_back({'a', 'b'}); });  // twice
  refused([](TokenizerData& d) { d.merges.push_back({262, 262}); });  // special
  refused([](TokenizerData& d) { d.tokens.add("ab", {}); });          // equal tokens
  refused([](TokenizerData& d) { d.tokens.add("", {}); });
  refused([](TokenizerData& d) { d.tokens.add("", {.type = TokenType::special}); });
  refused([](TokenizerData& d) { d.tokens.add("<s>", {.type = TokenType::special}); });
  refused([](TokenizerData& d) { d.bos = 266; });
  refused([](TokenizerData& d) { d.bos = -1, d.adds_bos = true; });
  refused([](TokenizerData& d) { d.unk = 266; });
  refused([](TokenizerData& d) { d.stop_ids.push_back(-1); });
  refused([](TokenizerData& d) { d.stop_ids.push_back(266); });
  refused([](TokenizerData& d) { d.patterns = {"(["}; });
  refused([](TokenizerData& d) { d.patterns = {"\\C"}; });
  refused([](TokenizerData& d) { d.byte_patterns = {"(*UTF)a"}; });
  refused([](TokenizerData& d) { d.kind = TokenizerData::Kind::none; });
}

TEST_CASE("a pattern that runs away ends in an error") {
  auto data = oq::test::small_bpe();
  data.patterns = {"(a|aa)+$(?<=b)|(x+x+)+y"};
  const auto t = make(std::move(data));
  CHECK_THROWS_WITH_AS(t->encode(std::string(200, 'x'), false), doctest::Contains("pattern"),
                       oq::Error);
}

TEST_CASE("more patterns than any tokenizer has are refused, before a text meets them") {
  auto data = oq::test::small_bpe();
  data.patterns.assign(60'000, "");  // a stack frame each, if they were run
  CHECK_THROWS_WITH_AS(make(data), doctest::Contains("expected at most 64, found 60000"),
                       oq::Error);
  data.patterns.assign(60, "[0-9]");
  data.byte_patterns.assign(4, "b");
  CHECK(make(data)->encode("a11", false) == Ids{'a', '1', '1'});
  data.byte_patterns.assign(5, "b");  // both lists count
  CHECK_THROWS_WITH_AS(make(data), doctest::Contains("found 65"), oq::Error);
}

TEST_CASE("a match that starts behind its end, or inside the one before it, is an error") {
  auto data = oq::test::small_bpe();
  for (const char* pattern : {R"((?(DEFINE)(?<x>a\K))(?=(?&x)))",         // [2, 1) of "bab"
                              R"(a|(?(DEFINE)(?<x>\Ka))(?<=(?&x))b)"}) {  // [1, 2), then [1, 3)
    data.patterns = {pattern};
    const auto t = make(data);
    CHECK(t->encode("xx", false) == Ids{'x', 'x'});
    CHECK_THROWS_WITH_AS(t->encode("bab", false), doctest::Contains("where no match can"),
                         oq::Error);
  }
}

TEST_CASE("a tokenizer goes through a file") {
  const oq::test::TempDir dir;
  TokenizerData data = oq::test::small_bpe();
  data.patterns = {"[0-9]"};
  data.chat_template = "chatml";
  {
    oq::Writer writer(dir / "t.oq", 8);
    data.store(writer);
    writer.finish();
  }
  const auto file = oq::File::open(dir / "t.oq");
  const auto t = oq::Tokenizer::load(*file);
  CHECK(t->encode("abc11<s>", true) == Ids{257, '1', '1', 262});
  CHECK(t->bos() == 262);
  CHECK_FALSE(t->adds_bos());
  CHECK(t->stop_ids().size() == 1);
  CHECK(file->metadata().get<std::string>("chat.template") == "chatml");

  oq::Writer writer(dir / "none.oq", 8);
  TokenizerData().store(writer);
  writer.finish();
  CHECK_THROWS_WITH_AS(oq::Tokenizer::load(*oq::File::open(dir / "none.oq")),
                       doctest::Contains("no tokenizer"), oq::Error);
}

TEST_CASE("metadata of the wrong kind is refused") {
  const auto refused = [](const char* key, oq::Metadata::Value value) {
    const oq::test::TempDir dir;
    oq::Writer writer(dir / "t.oq", 8);
    oq::test::small_bpe().store(writer);
    writer.metadata.set(key, std::move(value));
    writer.finish();
    CHECK_THROWS_AS(oq::Tokenizer::load(*oq::File::open(dir / "t.oq")), oq::Error);
  };
  refused("tokenizer.kind", std::string("wordpiece"));
  refused("tokenizer.kind", std::string("sentencepiece"));  // there is no model
  refused("tokenizer.version", int64_t(3));
  refused("tokenizer.prefix_space", std::string("sometimes"));
  refused("tokenizer.nfc", int64_t(1));
  refused("tokenizer.bos", int64_t(1) << 40);
  refused("tokenizer.patterns", std::string("a"));
}

TEST_CASE("a stop id that is none is refused as the number that it is") {
  for (const int64_t id : {int64_t(5'000'000'000), int64_t(-7)}) {
    const oq::test::TempDir dir;
    oq::Writer writer(dir / "t.oq", 8);
    oq::test::small_bpe().store(writer);
    writer.metadata.set("tokenizer.stop_ids", std::vector<int64_t>{263, id});
    writer.finish();
    const std::string found =
        "t.oq, metadata 'tokenizer.stop_ids': an id is out of range "
        "(expected 0..2147483647, found " +
        std::to_string(id) + ")";
    CHECK_THROWS_WITH_AS(oq::Tokenizer::load(*oq::File::open(dir / "t.oq")),
                         doctest::Contains(found.c_str()), oq::Error);
  }
}
