#include "tests/tokenizer/real_vocabularies.h"

#include <algorithm>
#include <tuple>
#include <unordered_map>

#include "runtime/tokenizer/sentencepiece_model.h"
#include "runtime/tokenizer/utf8.h"
#include "tests/gguf_builder.h"
#include "tests/support.h"
#include "tools/convert/gguf.h"
#include "tools/tensor_files/mapped_file.h"

namespace oq::test {
namespace {

using nlohmann::json;

// The checkpoints' own patterns.
constexpr const char* kBloom = " ?[^(\\s|[.,!?…。，、।۔،])]+";
constexpr const char* kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|)"
    R"(\s*[\r\n]+|\s+(?!\S)|\s+)";

struct GgufVocabulary {
  std::vector<std::string> tokens, merges;
  std::vector<int64_t> types;
};

std::optional<GgufVocabulary> read_gguf(const std::string& name) {
  const auto path = test::data("tokenizers/ggml-vocab-" + name + ".gguf");
  if (!path) return std::nullopt;
  const MappedFile file(*path);
  const convert::GgufFile gguf(file.bytes(), path->string());
  GgufVocabulary v;
  for (const auto t : gguf.get<std::vector<std::string_view>>("tokenizer.ggml.tokens"))
    v.tokens.emplace_back(t);
  for (const auto m : gguf.get<std::vector<std::string_view>>("tokenizer.ggml.merges"))
    v.merges.emplace_back(m);
  v.types = gguf.get<std::vector<int64_t>>("tokenizer.ggml.token_type");
  return v;
}

json special(size_t id, const std::string& text) {
  return {{"id", id},        {"content", text},     {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

json sequence(const char* parts, json list) {
  return {{"type", "Sequence"}, {parts, std::move(list)}};
}

json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", use_regex}};
}

json split(const char* regex) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", regex}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

json byte_level_json(const GgufVocabulary& v, const std::string& name) {
  json root = {{"added_tokens", json::array()}, {"normalizer", nullptr}};
  json vocab = json::object();
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    vocab[v.tokens[id]] = id;
    if (v.types[id] == SentencePieceModel::control) {
      root["added_tokens"].push_back(special(id, v.tokens[id]));
    }
  }
  json merges = json::array();
  const size_t kept = name == "llama3" ? 2000 : v.merges.size();
  for (size_t i = 0; i < kept; ++i) merges.push_back(v.merges[i]);
  root["model"] = {{"type", "BPE"},
                   {"vocab", std::move(vocab)},
                   {"merges", std::move(merges)},
                   {"ignore_merges", name == "llama3"}};
  if (name == "falcon") {
    root["pre_tokenizer"] = sequence(
        "pretokenizers", json::array({{{"type", "Punctuation"}, {"behavior", "Contiguous"}},
                                      byte_level(true),
                                      {{"type", "Digits"}, {"individual_digits", false}},
                                      split("[0-9][0-9][0-9]")}));
    return root;
  }
  const char* regex = name == "bloom" ? kBloom : name == "qwen2" ? kQwen2 : kLlama3;
  root["pre_tokenizer"] = sequence("pretokenizers", json::array({split(regex), byte_level(false)}));
  if (name == "qwen2") root["normalizer"] = {{"type", "NFC"}};
  return root;
}

/// A sentencepiece vocabulary as merges, in the order of transformers: by the score of what they
/// make, then by the lengths of their parts, then by the parts' ids.
class MergeMaker {
 public:
  explicit MergeMaker(const SentencePieceModel& model) : model_(model) {
    for (size_t id = 3; id < model.pieces.size(); ++id) ids_[model.pieces[id].text] = id;
  }

  json make() {
    for (size_t id = 3; id < model_.pieces.size(); ++id) add(model_.pieces[id]);
    std::stable_sort(rows_.begin(), rows_.end(), [](const Row& a, const Row& b) {
      return std::tuple(a.score, a.left_length, a.right_length) >
             std::tuple(b.score, b.left_length, b.right_length);
    });
    json merges = json::array();
    for (const Row& r : rows_) merges.push_back({r.left, r.right});
    return merges;
  }

 private:
  struct Row {
    float score;
    size_t left_length, right_length, left_id, right_id;
    std::string left, right;
  };

  void add(const SentencePieceModel::Piece& piece) {
    std::vector<size_t> cuts;
    for (size_t at = 0; at < piece.text.size(); at += utf8_step(piece.text, at).bytes) {
      cuts.push_back(at);
    }
    const size_t first = rows_.size();
    for (size_t i = 1; i < cuts.size(); ++i) {
      const std::string left = piece.text.substr(0, cuts[i]), right = piece.text.substr(cuts[i]);
      const auto l = ids_.find(left), r = ids_.find(right);
      if (l == ids_.end() || r == ids_.end()) continue;
      rows_.push_back({piece.score, i, cuts.size() - i, l->second, r->second, left, right});
    }
    std::sort(rows_.begin() + std::ptrdiff_t(first), rows_.end(), [](const Row& a, const Row& b) {
      return std::pair(a.left_id, a.right_id) < std::pair(b.left_id, b.right_id);
    });
  }

  const SentencePieceModel& model_;
  std::unordered_map<std::string, size_t> ids_;
  std::vector<Row> rows_;
};

json byte_fallback_json(const SentencePieceModel& model, const std::string& name) {
  json root = {
      {"added_tokens", json::array()}, {"normalizer", nullptr}, {"pre_tokenizer", nullptr}};
  json vocab = json::object();
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    vocab[model.pieces[id].text] = id;
    if (id < 3) root["added_tokens"].push_back(special(id, model.pieces[id].text));
  }
  root["model"] = {
      {"type", "BPE"},         {"unk_token", "<unk>"},      {"fuse_unk", true},
      {"byte_fallback", true}, {"vocab", std::move(vocab)}, {"merges", MergeMaker(model).make()}};
  if (name == "mixtral") {
    root["normalizer"] = sequence(
        "normalizers",
        json::array({{{"type", "Prepend"}, {"prepend", "▁"}},
                     {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", "▁"}}}));
  } else {
    root["pre_tokenizer"] = {{"type", "Metaspace"},
                             {"replacement", "▁"},
                             {"prepend_scheme", name == "mistral" ? "first" : "always"},
                             {"split", name != "mistral"}};
  }
  root["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", json::array({{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
                              {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}})},
      {"pair", json::array()},
      {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {1}}, {"tokens", {"<s>"}}}}}}};
  return root;
}

}  // namespace

std::optional<json> tokenizer_json(const std::string& name) {
  if (name == "mixtral" || name == "mistral" || name == "metaspace") {
    const auto path = test::data("tokenizers/llama2.tokenizer.model");
    if (!path) return std::nullopt;
    return byte_fallback_json(SentencePieceModel::parse(read_file(*path), path->string()), name);
  }
  const auto v = read_gguf(name == "falcon" || name == "llama3" ? "falcon" : "gpt-2");
  return v ? std::optional(byte_level_json(*v, name)) : std::nullopt;
}

bool write_opt_files(const std::filesystem::path& folder) {
  auto v = read_gguf("gpt-2");
  if (!v) return false;
  std::erase(v->tokens, "<|endoftext|>");
  const size_t words = v->tokens.size();
  json vocab = {{"<s>", 0}, {"<pad>", 1}, {"</s>", 2}, {"<unk>", 3}};
  for (size_t i = 0; i < words; ++i) vocab[v->tokens[i]] = 4 + i * 7919 % words;
  for (size_t i = 0; i < 5; ++i) vocab["madeupword000" + std::to_string(i)] = 4 + words + i;
  std::string merges = "#version: 0.2\n";
  for (const std::string& m : v->merges) merges += m + "\n";
  const auto token = [](const char* text) {
    return json{{"__type", "AddedToken"}, {"content", text}, {"lstrip", false},
                {"normalized", true},     {"rstrip", false}, {"single_word", false}};
  };
  const json config = {{"add_bos_token", true},      {"add_prefix_space", false},
                       {"bos_token", token("</s>")}, {"eos_token", token("</s>")},
                       {"unk_token", token("</s>")}, {"pad_token", token("<pad>")},
                       {"errors", "replace"},        {"tokenizer_class", "GPT2Tokenizer"}};
  write_file(folder / "vocab.json", vocab.dump());
  write_file(folder / "merges.txt", merges);
  write_file(folder / "tokenizer_config.json", config.dump());
  return true;
}

std::string sentencepiece_gguf(const std::string& bytes) {
  const SentencePieceModel model = SentencePieceModel::parse(bytes, "test");
  GgufBuilder gguf;
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> types;
  for (const auto& p : model.pieces) {
    tokens.push_back(p.text);
    scores.push_back(p.score);
    types.push_back(p.type);
  }
  gguf.set_string("tokenizer.ggml.model", "llama");
  gguf.set_strings("tokenizer.ggml.tokens", tokens);
  gguf.set_numbers("tokenizer.ggml.scores", GgufBuilder::f32, scores);
  gguf.set_numbers("tokenizer.ggml.token_type", GgufBuilder::i32, types);
  gguf.set_u32("tokenizer.ggml.bos_token_id", 1);
  gguf.set_u32("tokenizer.ggml.eos_token_id", 2);
  return gguf.bytes();
}

}  // namespace oq::test
