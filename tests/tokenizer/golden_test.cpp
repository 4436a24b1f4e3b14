// Ids against the Python libraries that the vocabularies come with, on golden/tokenizer/, and
// round trips of whole texts.

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/tokenizer/vocabularies.h"
#include "tools/convert/json.h"

namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

std::string show(const Ids& ids) { return json(ids).dump(); }

struct Golden {
  const char *vocabulary, *ids;  ///< see tests/tokenizer/vocabularies.h; the file ids_*.json
  bool parses = true;            ///< the library recognises special tokens
  bool whole = false;            ///< every text comes back, but for U+2581
};

/// Holds one vocabulary to its ids.
void check_golden(const Golden& g) {
  auto data = oq::test::vocabulary(g.vocabulary);
  if (!data) return;
  const auto tokenizer = oq::make_tokenizer(std::move(*data), g.vocabulary);
  const json strings = oq::convert::read_json(oq::test::golden("tokenizer/strings.json"));
  const json rows =
      oq::convert::read_json(oq::test::golden("tokenizer/ids_" + std::string(g.ids) + ".json"));
  REQUIRE(strings.size() >= 500);
  REQUIRE(rows.size() == strings.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto text = strings[i].get<std::string>();
    const Ids ids = rows[i]["ids"].get<Ids>();
    const Ids plain = rows[i].contains("plain") ? rows[i]["plain"].get<Ids>() : ids;
    CAPTURE(strings[i].dump());
    CHECK(show(tokenizer->encode(text, false)) == show(plain));
    if (g.parses) CHECK(show(tokenizer->encode(text, true)) == show(ids));
    if (g.whole && text.find("\xE2\x96\x81") == std::string::npos) {
      CHECK(tokenizer->decode(plain) == text);
    }
  }
}

void check_round_trip(const std::string& name) {
  auto data = oq::test::vocabulary(name);
  const auto path = oq::test::data("text/wikitext2-raw.valid.txt");
  if (!data || !path) return;
  const auto tokenizer = oq::make_tokenizer(std::move(*data), name);
  const std::string text = oq::test::read_file(*path);
  size_t lines = 0, wrong = 0;
  for (size_t at = 0; at < text.size(); ++lines) {
    const size_t end = std::min(text.find('\n', at), text.size() - 1) + 1;
    const std::string line = text.substr(at, end - at);
    if (tokenizer->decode(tokenizer->encode(line, false)) != line) ++wrong;
    at = end;
  }
  CHECK(lines > 3000);
  CHECK(wrong == 0);
  CHECK(tokenizer->decode(tokenizer->encode(text, false)) == text);
}

}  // namespace

TEST_SUITE("data") {
  TEST_CASE("ids of SmolLM2 are those of tokenizers") { check_golden({"smollm2", "smollm2"}); }
  TEST_CASE("ids of GPT-2 are those of tokenizers") {
    check_golden({.vocabulary = "gpt2", .ids = "gpt2", .whole = true});
  }
  TEST_CASE("ids of Falcon are those of tokenizers, from GGUF and tokenizer.json") {
    check_golden({"falcon", "falcon"});
    check_golden({"falcon-json", "falcon"});
  }
  TEST_CASE("ids of LLaMA-2 are those of sentencepiece, from tokenizer.model and GGUF") {
    for (const char* name : {"llama2", "llama2-gguf"}) check_golden({name, "llama2", false, true});
  }
  TEST_CASE("ids of OPT, from vocab.json and merges.txt, are those of transformers") {
    check_golden({.vocabulary = "opt", .ids = "opt", .whole = true});
    const auto data = oq::test::vocabulary("opt");
    if (!data) return;
    CHECK(data->tokens.size() == 50265);
    CHECK(data->bos == 2);  // </s>
    CHECK(data->adds_bos);
    CHECK(data->stop_ids == Ids{2});
  }
  TEST_CASE("ids under the rules of BLOOM, Qwen2 and LLaMA-3 are those of tokenizers") {
    check_golden({.vocabulary = "bloom", .ids = "bloom", .whole = true});
    check_golden({"qwen2", "qwen2"});
    check_golden({"llama3", "llama3"});
  }
  TEST_CASE("ids of BPE with byte_fallback are those of tokenizers") {
    check_golden({.vocabulary = "mixtral", .ids = "mixtral", .whole = true});
    check_golden({"mistral", "mistral"});
    check_golden({"metaspace", "metaspace"});
    const auto data = oq::test::vocabulary("mixtral");
    if (!data) return;
    CHECK(data->bos == 1);
    CHECK(data->adds_bos);
  }
  TEST_CASE("merges and scores say the same on a whole book") {
    // LLaMA-2's merges were made from its scores: two ways to the same ids.
    auto model = oq::test::vocabulary("llama2"), merges = oq::test::vocabulary("mixtral");
    const auto path = oq::test::data("text/wikitext2-raw.valid.txt");
    if (!model || !merges || !path) return;
    const std::string text = oq::test::read_file(*path);
    const Ids ids = oq::make_tokenizer(std::move(*merges), "mixtral")->encode(text, false);
    CHECK(ids.size() > 100000);
    CHECK((ids == oq::make_tokenizer(std::move(*model), "llama2")->encode(text, false)));
  }

  TEST_CASE("real vocabularies go through a file") {
    for (const char* name :
         {"smollm2", "gpt2", "falcon", "llama2", "opt", "qwen2", "llama3", "mixtral", "mistral"}) {
      const auto data = oq::test::vocabulary(name);
      if (!data) continue;
      const oq::test::TempDir dir;
      oq::Writer writer(dir / "t.oq", 8);
      data->store(writer);
      writer.finish();
      const auto stored = oq::Tokenizer::load(*oq::File::open(dir / "t.oq"));
      const auto direct = oq::make_tokenizer(*data, name);
      for (const auto& s : oq::convert::read_json(oq::test::golden("tokenizer/strings.json"))) {
        const auto text = s.get<std::string>();
        CHECK(stored->encode(text, true) == direct->encode(text, true));
      }
      CHECK(stored->bos() == direct->bos());
    }
  }

  TEST_CASE("SmolLM2 says how to chat") {
    const auto data = oq::test::vocabulary("smollm2");
    if (!data) return;
    CHECK(data->chat_template == "smollm");
    CHECK(data->bos == 1);
    CHECK_FALSE(data->adds_bos);
    CHECK(data->stop_ids == Ids{2});
  }

  TEST_CASE("WikiText-2 comes back") {
    check_round_trip("smollm2");
    check_round_trip("gpt2");
    check_round_trip("falcon");
    check_round_trip("llama2");
    check_round_trip("opt");
    check_round_trip("mixtral");
  }
}
