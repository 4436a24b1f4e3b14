// tokenizer.json, Hugging Face folders and GGUF metadata, sound and not.

#include <doctest/doctest.h>

#include "runtime/tokenizer/pretokenizer.h"
#include "tests/gguf_builder.h"
#include "tests/tokenizer/vocabularies.h"
#include "tools/convert/byte_level.h"
#include "tools/convert/json.h"
#include "tools/convert/pretokenizers.h"
#include "tools/convert/tokenizer_json.h"

namespace {

using nlohmann::json;
using oq::TokenizerData;
using Ids = std::vector<int32_t>;

json small_json() {
  return json::parse(R"({
    "version": "1.0",
    "added_tokens": [
      {"id": 8, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
       "normalized": false, "special": true},
      {"id": 9, "content": "  ", "single_word": false, "lstrip": false, "rstrip": false,
       "normalized": true, "special": false}],
    "normalizer": null,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Digits", "individual_digits": true},
      {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<|end|>", "type_id": 0}},
                 {"Sequence": {"id": "A", "type_id": 0}}],
      "pair": [], "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": [8], "tokens": []}}},
    "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
      "byte_fallback": false, "ignore_merges": false,
      "vocab": {"a": 0, "b": 1, "Ġ": 2, "1": 3, "ab": 4, "Ġab": 5, "11": 6, "Ċ": 7},
      "merges": ["a b", ["Ġ", "ab"], "1 1"]}})");
}

TokenizerData read(const json& root) { return oq::convert::tokenizer_from_json(root, "test"); }

Ids ids(const json& root, std::string_view text) {
  return oq::make_tokenizer(read(root), "test")->encode(text, true);
}

void refused(const json& root, const char* message) {
  CHECK_THROWS_WITH_AS(oq::make_tokenizer(read(root), "test"), doctest::Contains(message),
                       oq::Error);
}

}  // namespace

TEST_CASE("tokenizer.json is read") {
  const json root = small_json();
  CHECK(ids(root, "ab ab11\n") == Ids{4, 5, 3, 3, 7});
  CHECK(ids(root, "ab<|end|>  ab") == Ids{4, 8, 9, 4});
  const TokenizerData data = read(root);
  CHECK(data.bos == 8);
  CHECK(data.adds_bos);
  CHECK(data.unk == -1);
}

TEST_CASE("tokenizer.json: pre-tokenizers") {
  json root = small_json();
  json& pre = root["pre_tokenizer"];
  pre = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"use_regex", true}};
  CHECK(ids(root, "ab 11") == Ids{5, 2, 6});
  const json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}};
  const auto split = [](const char* kind, const char* text) {
    return json{{"type", "Split"},
                {"pattern", {{kind, text}}},
                {"behavior", "Isolated"},
                {"invert", false}};
  };
  pre = {{"type", "Sequence"}, {"pretokenizers", json::array({split("Regex", "a|\\s"), bytes})}};
  CHECK(ids(root, "ab ab") == Ids{0, 1, 2, 0, 1});
  pre["pretokenizers"] = json::array({split("String", "b a"), bytes});
  CHECK(ids(root, "ab ab") == Ids{0, 1, 2, 0, 1});
  pre["pretokenizers"] = json::array({bytes, split("Regex", "[0-9]")});
  CHECK(ids(root, "11") == Ids{3, 3});
  pre["pretokenizers"] = json::array({bytes, {{"type", "Digits"}, {"individual_digits", false}}});
  CHECK(ids(root, "ab11") == Ids{4, 6});

  pre["pretokenizers"] = json::array({bytes, split("Regex", "\\s")});
  refused(root, "behind ByteLevel");
  pre["pretokenizers"] = json::array({split("Regex", "[a&&b]"), bytes});
  refused(root, "intersection");
  pre["pretokenizers"] = json::array({split("Regex", "("), bytes});
  refused(root, "does not compile");
  pre["pretokenizers"] = json::array({bytes, bytes});
  refused(root, "twice");
  pre["pretokenizers"] = json::array({split("Regex", "a")});
  refused(root, "no ByteLevel");
  pre = {{"type", "Metaspace"}};
  refused(root, "Metaspace");
  pre = {{"type", "Whitespace"}};
  refused(root, "Whitespace");
}

TEST_CASE("tokenizer.json: what OQ does not run is refused by name") {
  const auto with = [](const char* pointer, json value) {
    json root = small_json();
    root[json::json_pointer(pointer)] = std::move(value);
    return root;
  };
  refused(with("/normalizer", {{"type", "NFC"}}), "NFC");
  refused(with("/model/type", "Unigram"), "Unigram");
  refused(with("/model/byte_fallback", true), "tokenizer.model");
  refused(with("/model/end_of_word_suffix", "</w>"), "</w>");
  refused(with("/model/continuing_subword_prefix", "##"), "##");
  refused(with("/added_tokens/0/single_word", true), "single_word");
  refused(with("/model/merges/0", "a x"), "not there");
  refused(with("/model/merges/0", "ab"), "space");
  refused(with("/model/merges/0", json::array({"a"})), "merges");
  refused(with("/model/merges/0", 3), "merges");
  refused(with("/model/vocab/a", -1), "vocab");
  refused(with("/model/vocab/a", 4000000000u), "vocab");
  refused(with("/model/vocab/a", 1), "twice");
  refused(with("/model/vocab/日", 10), "alphabet");
  refused(with("/model/vocab", json::array()), "vocab");
  refused(with("/model", nullptr), "model");
  refused(with("/added_tokens/0/content", ""), "empty");
  refused(with("/added_tokens/0/id", "8"), "added_tokens");
  refused(with("/post_processor/special_tokens/<|end|>/ids", json::array({77})), "post_processor");
  refused(json::array(), "");
  CHECK(ids(with("/model/unk_token", "1"), "axb") == Ids{0, 3, 1});
  CHECK(ids(with("/model/ignore_merges", true), " ab") == Ids{5});
}

TEST_CASE("tokenizer.json: damage anywhere is an error, not a crash") {
  const std::string text = small_json().dump();
  for (size_t n = 0; n < text.size(); ++n) {
    CHECK_THROWS_AS(oq::convert::parse_json(std::string_view(text).substr(0, n), "test"),
                    oq::Error);
  }
  const std::string deep(200000, '[');
  CHECK_THROWS_AS(oq::convert::parse_json(deep, "test"), oq::Error);
  CHECK_THROWS_AS(oq::convert::parse_json(R"({"a":1,"a":2})", "test"), oq::Error);
  json nested = {{"type", "Sequence"}, {"pretokenizers", json::array()}};
  for (int i = 0; i < 1000; ++i) {
    nested = {{"type", "Sequence"}, {"pretokenizers", json::array({nested})}};
  }
  json root = small_json();
  root["pre_tokenizer"] = nested;
  CHECK_THROWS_AS(oq::convert::parse_json(root.dump(), "test"), oq::Error);
}

TEST_CASE("a Hugging Face folder says what ends an answer") {
  const oq::test::TempDir dir;
  const auto put = [&](const char* name, const json& value) {
    oq::test::write_file(dir / name, value.dump());
  };
  CHECK(oq::convert::import_hf_tokenizer(dir.path()).kind == TokenizerData::Kind::none);
  put("tokenizer.json", small_json());
  put("tokenizer_config.json",
      {{"bos_token", {{"content", "a"}}},
       {"eos_token", "b"},
       {"add_bos_token", false},
       {"chat_template",
        json::array({{{"name", "tool"}, {"template", "x"}},
                     {{"name", "default"}, {"template", "<|im_start|><|im_end|><|end|>"}}})}});
  put("generation_config.json", {{"eos_token_id", {3, 4, 12345}}});
  TokenizerData data = oq::convert::import_hf_tokenizer(dir.path());
  CHECK(data.bos == 0);
  CHECK_FALSE(data.adds_bos);
  CHECK(data.stop_ids == Ids{1, 3, 4, 8});
  CHECK(data.chat_template == "chatml");
  CHECK(data.chat_template_hash.size() == 64);
  oq::test::write_file(dir / "chat_template.jinja", "{{ something else }}");
  put("tokenizer_config.json", json::object());
  put("special_tokens_map.json", {{"eos_token", "<|end|>"}});
  put("generation_config.json", {{"eos_token_id", 8}});
  data = oq::convert::import_hf_tokenizer(dir.path());
  CHECK(data.chat_template == "unknown");
  CHECK(data.bos == 8);
  CHECK(data.adds_bos);
  CHECK(data.stop_ids == Ids{8});
}

TEST_CASE("a GGUF's byte-level vocabulary is read") {
  const auto gguf = [](const char* pre, const char* merge) {
    oq::test::GgufBuilder b;
    b.set_string("tokenizer.ggml.model", "gpt2");
    b.set_string("tokenizer.ggml.pre", pre);
    b.set_strings("tokenizer.ggml.tokens", {"a", "b", "ab", "<|eot_id|>", "Ġ"});
    b.set_numbers<int32_t>("tokenizer.ggml.token_type", oq::test::GgufBuilder::i32,
                           {1, 1, 1, 3, 1});
    b.set_strings("tokenizer.ggml.merges", {merge});
    b.set_u32("tokenizer.ggml.bos_token_id", 4);
    b.set_u32("tokenizer.ggml.eos_token_id", 1);
    b.set_string("tokenizer.chat_template",
                 "<|start_header_id|><|end_header_id|><|eot_id|>{{ content | trim }}");
    return b.bytes();
  };
  const auto load = [](const std::string& bytes) {
    return oq::convert::import_gguf_tokenizer(
        oq::convert::GgufFile(std::as_bytes(std::span(bytes)), "test"));
  };
  const TokenizerData data = load(gguf("gpt-2", "a b"));
  CHECK(data.bos == 4);
  CHECK_FALSE(data.adds_bos);
  CHECK(data.stop_ids == Ids{1, 3});
  CHECK(data.chat_template == "llama3");
  CHECK(oq::make_tokenizer(data, "test")->encode("ab<|eot_id|>", true) == Ids{2, 3});
  CHECK(load(gguf("llama-bpe", "a b")).ignore_merges);
  CHECK(load(gguf("llama-bpe", "a b")).adds_bos);
  CHECK_THROWS_WITH_AS(load(gguf("nobody", "a b")), doctest::Contains("smollm"), oq::Error);
  CHECK_THROWS_AS(load(gguf("", "a b")), oq::Error);
  CHECK_THROWS_AS(load(gguf("gpt-2", "a x")), oq::Error);
  CHECK_THROWS_AS(load(gguf("gpt-2", "ab")), oq::Error);
  CHECK_THROWS_AS(load(gguf("gpt-2", " b")), oq::Error);
}

TEST_CASE("every known pre-tokenizer compiles, and cuts as its checkpoints do") {
  const char* names[] = {"default",      "gpt-2",          "mpt",        "olmo",
                         "smollm",       "starcoder",      "refact",     "command-r",
                         "llama-bpe",    "dbrx",           "qwen2",      "falcon",
                         "tekken",       "bloom",          "viking",     "stablelm2",
                         "deepseek-llm", "deepseek-coder", "deepseek-v3"};
  for (const char* name : names) {
    CAPTURE(name);
    const auto known = oq::convert::known_pretokenization(name, "test");
    auto data = oq::test::small_bpe();
    data.patterns = known.patterns;
    data.byte_patterns = known.byte_patterns;
    const auto t = oq::make_tokenizer(std::move(data), "test");
    const std::string text = "Ab 11'll \t\n x!? \xE6\x97\xA5 \xFF a";
    CHECK(t->decode(t->encode(text, false)) == text);
  }
  const auto words = [](const char* name, std::string_view text) {
    const auto known = oq::convert::known_pretokenization(name, "test");
    const oq::Pretokenizer cut(known.patterns, known.byte_patterns, "test");
    std::vector<std::string_view> pieces;
    cut.split(text, pieces);
    std::string shown;
    for (const auto p : pieces) shown += (shown.empty() ? "" : "|") + std::string(p);
    return shown;
  };
  CHECK(words("gpt-2", "I'll go  on 123.") == "I|'ll| go| | on| 123|.");
  CHECK(words("smollm", "I'LL go 123") == "I|'|LL| go| |1|2|3");
  CHECK(words("llama-bpe", "I'LL (go) 12345\n\n x") == "I|'LL| (|go|)| |123|45|\n\n| x");
  CHECK(words("qwen2", "ab 12") == "ab| |1|2");
  CHECK(words("falcon", "ab+1234") == "ab|+|123|4");
  CHECK(words("deepseek-llm", "a b  \n12") == "a| b|  |\n|12");
}

TEST_CASE("the byte-level alphabet") {
  CHECK(oq::convert::from_byte_level("aĠĊ") == "a \n");
  CHECK(oq::convert::from_byte_level("Ā") == std::string(1, '\0'));
  CHECK(oq::convert::from_byte_level("Ń") == "\xAD");
  CHECK(oq::convert::from_byte_level("ÿ") == "\xFF");
  CHECK_FALSE(oq::convert::from_byte_level(" "));
  CHECK_FALSE(oq::convert::from_byte_level("日"));
  CHECK_FALSE(oq::convert::from_byte_level("\xFF"));
}

TEST_CASE("patterns are translated, or refused") {
  CHECK(oq::convert::to_pcre2("\\p{L}+|a\\.b", "test") == "\\p{L}+|a\\.b");
  CHECK(oq::convert::to_pcre2("\\u4e00", "test") == "\\x{4e00}");
  CHECK(oq::convert::to_pcre2("(?i:x)(?!y)", "test") == "(?i:x)(?!y)");
  for (const char* bad : {"\\w", "\\bx", "\\h", "[a[b]]", "[a&&b]", "(?m:x)", "x\\", "[]a]"}) {
    CAPTURE(bad);
    CHECK_THROWS_AS(oq::convert::to_pcre2(bad, "test"), oq::Error);
  }
  CHECK(oq::convert::literal_pattern("a.b ") == "a\\.b\\ ");
}
