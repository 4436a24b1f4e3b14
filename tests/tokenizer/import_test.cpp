// tokenizer.json, Hugging Face folders and GGUF metadata, sound and not.

#include <cstdio>

#include <doctest/doctest.h>

#include "runtime/tokenizer/pretokenizer.h"
#include "tests/gguf_builder.h"
#include "tests/tokenizer/vocabularies.h"
#include "tools/convert/json.h"
#include "tools/convert/pretokenizers.h"
#include "tools/convert/spelling.h"
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

/// <unk> <s>, the bytes from 2 on, then from 258 on: characters and what merges make of them.
json small_byte_fallback() {
  json vocab = {{"<unk>", 0}, {"<s>", 1}};
  for (int b = 0; b < 256; ++b) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", unsigned(b));
    vocab[name] = 2 + b;
  }
  int id = 258;
  for (const char* t : {"▁", "a", "b", "ab", "▁ab", "é", " x"}) vocab[t] = id++;
  json root = json::parse(R"({
    "added_tokens": [
      {"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "<s>", "special": true}],
    "normalizer": {"type": "Sequence", "normalizers": [
      {"type": "Prepend", "prepend": "▁"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "pre_tokenizer": null,
    "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
              "merges": ["a b", "▁ ab", "< s>", "<0x 41>"]}})");
  root["model"]["vocab"] = std::move(vocab);
  return root;
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

TEST_CASE("tokenizer.json: NFC") {
  json root = small_json();
  root["model"]["vocab"]["Ã©"] = 20;
  root["model"]["vocab"]["Ã"] = 21;
  root["model"]["vocab"]["©"] = 22;
  root["model"]["merges"].push_back("Ã ©");
  CHECK(ids(root, "a\u00e9") == Ids{0, 20});
  CHECK(ids(root, "ae\u0301") == Ids{0});  // no token for its bytes
  root["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
  CHECK(ids(root, "ae\u0301b") == Ids{0, 20, 1});
  CHECK(read(root).nfc);
}

TEST_CASE("tokenizer.json: BPE with byte_fallback") {
  json root = small_byte_fallback();
  CHECK(ids(root, "ab") == Ids{262});
  CHECK(ids(root, " ab") == Ids{258, 262});
  CHECK(ids(root, "ab\u2581ab") == Ids{262, 262});
  CHECK(ids(root, "é日") == Ids{258, 263, 2 + 0xE6, 2 + 0x97, 2 + 0xA5});
  CHECK(ids(root, "ab<s>ab") == Ids{262, 1, 262});
  CHECK(ids(root, "<0x41>\n") ==
        Ids{258, 2 + '<', 2 + '0', 2 + 'x', 2 + '4', 2 + '1', 2 + '>', 12});
  CHECK(ids(root, " x") == Ids{258, 258, 2 + 'x'});  // a token that holds a space is out of reach
  const auto t = oq::make_tokenizer(read(root), "test");
  for (const std::string text : {"ab b", "  a", "é日\n", "\xFF\xE6"}) {
    CHECK(t->decode(t->encode(text, false)) == text);
  }
  CHECK(t->token_bytes(264) == " x");
  CHECK(t->token_name(1) == "<s>");

  root["normalizer"] = nullptr;
  json& pre = root["pre_tokenizer"];
  pre = {
      {"type", "Metaspace"}, {"replacement", "▁"}, {"prepend_scheme", "first"}, {"split", false}};
  CHECK(ids(root, "ab<s>ab") == Ids{262, 1, 261});
  CHECK(ids(root, " ab") == Ids{262});
  CHECK(ids(root, "\u2581ab") == Ids{262});
  CHECK(ids(root, "<s>ab") == Ids{1, 261});
  pre["prepend_scheme"] = "always";
  CHECK(ids(root, "ab<s>ab") == Ids{262, 1, 262});
  pre["prepend_scheme"] = "never";
  CHECK(ids(root, "ab") == Ids{261});
  pre = {{"type", "Metaspace"}, {"replacement", "▁"}, {"add_prefix_space", false}};  // older files
  CHECK(ids(root, "ab ab") == Ids{261, 262});

  pre["prepend_scheme"] = "sometimes";
  pre["add_prefix_space"] = true;
  refused(root, "prepend_scheme");
  pre["replacement"] = "_";
  refused(root, "U+2581");
  pre = {{"type", "Whitespace"}};
  refused(root, "Whitespace");
  pre = nullptr;
  refused(root, "tokenizer.model");  // nothing marks spaces
  root["normalizer"] = {{"type", "Prepend"}, {"prepend", "_"}};
  refused(root, "Prepend");
  root["normalizer"] = {{"type", "Replace"}, {"pattern", {{"Regex", " "}}}, {"content", "▁"}};
  refused(root, "Replace");
  root = small_byte_fallback();
  root["model"]["vocab"].erase("<0x41>");
  refused(root, "byte 65");
  root = small_byte_fallback();
  root["model"]["merges"].push_back("a z");
  refused(root, "merge 4 names or makes a token that is not there");  // two before it are left out
}

TEST_CASE("vocab.json and merges.txt") {
  const oq::test::TempDir dir;
  const auto put = [&](const char* name, const std::string& text) {
    oq::test::write_file(dir / name, text);
  };
  put("vocab.json", R"({"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4, "Ġ": 5, "Ġab": 6, "#": 7,
                        "##": 8, "<|endoftext|>": 9})");
  CHECK(oq::convert::import_hf_tokenizer(dir.path()).kind == TokenizerData::Kind::none);
  const auto load = [&] { return oq::convert::import_hf_tokenizer(dir.path()); };
  const auto encode = [&](std::string_view text) {
    return oq::make_tokenizer(load(), "test")->encode(text, true);
  };
  put("merges.txt", "#version: 0.2\na b\r\nĠ ab\n# #\n");
  CHECK(encode("ab ab##</s>") == Ids{4, 6, 8});  // nothing says that </s> is special
  CHECK(encode("a<|endoftext|>") == Ids{2, 9});
  CHECK(load().bos == 9);
  CHECK_FALSE(load().adds_bos);
  CHECK(load().stop_ids == Ids{9});
  put("merges.txt", "# #\na b\nĠ ab");  // no version, no newline at the end
  CHECK(encode("ab##") == Ids{4, 8});

  put("tokenizer_config.json",
      R"({"bos_token": {"content": "</s>", "rstrip": true}, "eos_token": {"content": "</s>", "rstrip": true}, "add_bos_token": true,
          "tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": true})");
  CHECK(encode("ab</s>  ab") == Ids{6, 1, 6});
  CHECK(load().bos == 1);
  CHECK(load().adds_bos);
  CHECK(load().stop_ids == Ids{1});
  put("special_tokens_map.json", R"({"additional_special_tokens": ["<s>"]})");
  put("added_tokens.json", R"({"<tag>": 10})");
  CHECK(encode("<s><tag>") == Ids{0, 10});

  const auto refuses = [&](const char* message) {
    CHECK_THROWS_WITH_AS(load(), doctest::Contains(message), oq::Error);
  };
  put("tokenizer_config.json", R"({"tokenizer_class": "RobertaTokenizer"})");
  refuses("RobertaTokenizer");
  put("tokenizer_config.json", "{}");
  put("merges.txt", "a b\na\n");
  refuses("merges.txt: line 2");
  put("merges.txt", "a z\n");
  refuses("merges.txt");
  put("merges.txt", "a b\n");
  put("added_tokens.json", R"({"<tag>": 100000})");
  refuses("an added token holds an id");
  put("added_tokens.json", "{}");
  put("vocab.json", R"({"a": 0, "b": 0, "ab": 1})");
  refuses("vocab.json: the vocabulary gives one id twice");
  put("vocab.json", R"({"a": 0, "b": 1, "ab": 100000})");
  refuses("vocab.json");
  put("vocab.json", "[1]");
  refuses("vocab.json");
}

TEST_CASE("more tokens than rows of the embedding are refused, fewer are right") {
  const TokenizerData data = read(small_json());  // 10 tokens
  oq::convert::check_vocabulary(data, 10, "test");
  oq::convert::check_vocabulary(data, 64, "test");
  CHECK_THROWS_WITH_AS(oq::convert::check_vocabulary(data, 9, "model"),
                       doctest::Contains("model: vocabulary and embedding disagree"), oq::Error);
  oq::convert::check_vocabulary({}, 0, "test");
}

TEST_CASE("tokenizer.json: what OQ does not run is refused by name") {
  const auto with = [](const char* pointer, json value) {
    json root = small_json();
    root[json::json_pointer(pointer)] = std::move(value);
    return root;
  };
  refused(with("/normalizer", {{"type", "NFKC"}}), "NFKC");
  refused(with("/normalizer", {{"type", "Prepend"}, {"prepend", "▁"}}), "Prepend");
  refused(with("/model/type", "Unigram"), "Unigram");
  refused(with("/model/byte_fallback", true), "with byte_fallback");
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
  CHECK(oq::convert::to_pcre2("[^(a|[.,!])]+[b]", "test") == "[^(a|.,!)]+[b]");
  for (const char* bad : {"\\w", "\\bx", "\\h", "[a[^b]]", "[a-[b]]", "[[a]-b]", "[a[:alpha:]]",
                          "[[]]", "[a&&b]", "(?m:x)", "x\\", "[]a]"}) {
    CAPTURE(bad);
    CHECK_THROWS_AS(oq::convert::to_pcre2(bad, "test"), oq::Error);
  }
  CHECK(oq::convert::literal_pattern("a.b ") == "a\\.b\\ ");
}
