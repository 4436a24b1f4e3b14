#include "tests/tiny_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <numeric>
#include <stdexcept>

#include <nlohmann/json.hpp>

#include "format/half.h"
#include "tests/gguf_builder.h"

namespace oq::test {
namespace {

using nlohmann::json;

constexpr const char* kChatTemplate =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ "
    "'<|im_start|>assistant\n' }}{% endif %}";

/// Numbers that are the same everywhere: splitmix64, and a sum of uniforms for a bell curve.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  /// Mean 0, deviation 1.
  float normal() {
    double sum = 0;
    for (int i = 0; i < 4; ++i) sum += double(next() >> 11) * 0x1p-53 - 0.5;
    return float(sum * 1.7320508075688772);
  }

 private:
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  uint64_t state_;
};

std::string utf8(uint32_t c) {
  if (c < 0x80) return {char(c)};
  return {char(0xC0 | (c >> 6)), char(0x80 | (c & 63))};
}

/// How byte-level BPE writes each byte: itself where that is printable, else 256, 257, ...
std::vector<std::string> byte_letters() {
  std::vector<std::string> letters;
  uint32_t extra = 256;
  for (uint32_t b = 0; b < 256; ++b) {
    const bool shown = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    letters.push_back(utf8(shown ? b : extra++));
  }
  return letters;
}

TinyVocabulary make_vocabulary() {
  TinyVocabulary v;
  v.tokens = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  for (std::string& letter : byte_letters()) v.tokens.push_back(std::move(letter));
  const std::string space = "\xC4\xA0";  // how a space is written
  v.merges = {
      {space, "t"},  {"h", "e"},         {space + "t", "he"}, {"i", "n"},   {space, "a"},
      {"r", "e"},    {"o", "n"},         {"e", "r"},          {space, "s"}, {"n", "d"},
      {"a", "t"},    {space, "w"},       {"o", "r"},          {space, "o"}, {"e", "n"},
      {"i", "s"},    {"i", "t"},         {"o", "u"},          {space, "c"}, {"e", "s"},
      {"in", "g"},   {space, "f"},       {space, "b"},        {"a", "n"},   {"e", "d"},
      {space, "m"},  {"a", "l"},         {space, "p"},        {"a", "r"},   {space + "a", "nd"},
      {space, "in"}, {space + "o", "f"}, {space + "t", "o"},  {"l", "l"},   {"l", "o"},
      {"u", "s"},    {"s", "er"},        {"us", "er"},        {"he", "ll"}, {"hell", "o"},
      {"a", "s"}};
  for (const auto& [left, right] : v.merges) v.tokens.push_back(left + right);
  return v;
}

class Maker {
 public:
  Maker(uint64_t seed, const TinyOptions& options) : random_(seed), o_(options) {}

  std::vector<TinyTensor> make() {
    const uint64_t h = uint64_t(o_.hidden), q = uint64_t(o_.heads * o_.head_dim);
    const uint64_t kv = uint64_t(o_.kv_heads * o_.head_dim), m = uint64_t(o_.mlp);
    const uint64_t vocab = tiny_vocabulary().tokens.size();
    matrix("model.embed_tokens", "token_embd", vocab, h, 1.0f);
    for (int b = 0; b < o_.blocks; ++b) {
      const std::string hf = "model.layers." + std::to_string(b) + ".";
      const std::string gguf = "blk." + std::to_string(b) + ".";
      norm(hf + "input_layernorm", gguf + "attn_norm", h);
      linear(hf + "self_attn.q_proj", gguf + "attn_q", q, h, true);
      linear(hf + "self_attn.k_proj", gguf + "attn_k", kv, h, true);
      linear(hf + "self_attn.v_proj", gguf + "attn_v", kv, h);
      linear(hf + "self_attn.o_proj", gguf + "attn_output", h, q);
      norm(hf + "post_attention_layernorm", gguf + "ffn_norm", h);
      linear(hf + "mlp.gate_proj", gguf + "ffn_gate", m, h);
      linear(hf + "mlp.up_proj", gguf + "ffn_up", m, h);
      linear(hf + "mlp.down_proj", gguf + "ffn_down", h, m);
    }
    norm("model.norm", "output_norm", h);
    if (!o_.tied) matrix("lm_head", "output", vocab, h, 1.5f / std::sqrt(float(h)));
    return std::move(tensors_);
  }

 private:
  void matrix(const std::string& hf, const std::string& gguf, uint64_t rows, uint64_t cols,
              float deviation, bool paired = false) {
    TinyTensor t{hf + ".weight", gguf + ".weight", rows, cols, {}, paired};
    for (uint64_t i = 0; i < rows * cols; ++i) t.values.push_back(deviation * random_.normal());
    tensors_.push_back(std::move(t));
  }
  void linear(const std::string& hf, const std::string& gguf, uint64_t rows, uint64_t cols,
              bool paired = false) {
    matrix(hf, gguf, rows, cols, 1.2f / std::sqrt(float(cols)), paired);
    if (!o_.biases) return;
    TinyTensor t{hf + ".bias", gguf + ".bias", 1, rows, {}, paired};
    for (uint64_t i = 0; i < rows; ++i) t.values.push_back(0.1f * random_.normal());
    tensors_.push_back(std::move(t));
  }
  void norm(const std::string& hf, const std::string& gguf, uint64_t n) {
    TinyTensor t{hf + ".weight", gguf + ".weight", 1, n, {}, false};
    for (uint64_t i = 0; i < n; ++i) t.values.push_back(1.0f + 0.1f * random_.normal());
    tensors_.push_back(std::move(t));
  }

  Random random_;
  TinyOptions o_;
  std::vector<TinyTensor> tensors_;
};

void write(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), std::streamsize(bytes.size()));
  if (!out.flush()) throw std::runtime_error("cannot write " + path.string());
}

json tiny_config(const TinyOptions& o) {
  json c = {{"architectures", {"LlamaForCausalLM"}},
            {"model_type", "llama"},
            {"vocab_size", tiny_vocabulary().tokens.size()},
            {"hidden_size", o.hidden},
            {"intermediate_size", o.mlp},
            {"num_hidden_layers", o.blocks},
            {"num_attention_heads", o.heads},
            {"num_key_value_heads", o.kv_heads},
            {"head_dim", o.head_dim},
            {"max_position_embeddings", o.context},
            {"rms_norm_eps", 1e-5},
            {"rope_theta", o.rope_theta},
            {"rope_scaling", nullptr},
            {"hidden_act", "silu"},
            {"attention_bias", o.biases},
            {"mlp_bias", o.biases},
            {"tie_word_embeddings", o.tied},
            {"bos_token_id", 1},
            {"eos_token_id", 2}};
  if (!o.rope_scaling.empty()) c["rope_scaling"] = json::parse(o.rope_scaling);
  return c;
}

json tiny_tokenizer() {
  const TinyVocabulary& v = tiny_vocabulary();
  json added = json::array(), vocab = json::object(), merges = json::array();
  for (size_t id = 0; id < v.tokens.size(); ++id) vocab[v.tokens[id]] = id;
  for (size_t id = 0; id < 3; ++id) {
    added.push_back({{"id", id},
                     {"content", v.tokens[id]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  for (const auto& [left, right] : v.merges) merges.push_back(left + " " + right);
  const json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "Sequence"},
            {"pretokenizers", {{{"type", "Digits"}, {"individual_digits", true}}, byte_level}}}},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"vocab", vocab},
            {"merges", merges}}}};
}

void write_shards(const std::filesystem::path& folder, const std::vector<TinyTensor>& tensors,
                  const TinyOptions& o) {
  const auto shards = size_t(o.shards);
  json map = json::object();
  for (size_t s = 0; s < shards; ++s) {
    char name[64];
    std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", s + 1, shards);
    const auto first = tensors.begin() + std::ptrdiff_t(tensors.size() * s / shards);
    const auto last = tensors.begin() + std::ptrdiff_t(tensors.size() * (s + 1) / shards);
    for (auto t = first; t != last; ++t) map[t->hf_name] = name;
    write(folder / name, safetensors_bytes({first, last}, o.dtype));
  }
  write(folder / "model.safetensors.index.json",
        json{{"metadata", json::object()}, {"weight_map", map}}.dump());
}

/// Rows of q and k (or elements of their biases) as GGUF's LLaMA keeps them: row 2i is HF's row i
/// of the head, row 2i + 1 its row i + head_dim / 2.
std::vector<float> paired_rows(const TinyTensor& t, size_t head_dim) {
  const size_t width = t.rows == 1 ? 1 : t.cols, rows = t.values.size() / width;
  std::vector<float> out(t.values.size());
  for (size_t row = 0; row < rows; ++row) {
    const size_t head = row / head_dim, i = row % head_dim;
    const size_t from = head * head_dim + i / 2 + i % 2 * (head_dim / 2);
    std::copy_n(&t.values[from * width], width, &out[row * width]);
  }
  return out;
}

uint32_t ggml_id(const std::string& dtype) {
  const std::pair<const char*, uint32_t> ids[] = {
      {"F32", 0}, {"F16", 1}, {"Q8_0", 8}, {"BF16", 30}};
  for (const auto& [name, id] : ids) {
    if (dtype == name) return id;
  }
  throw std::runtime_error("no dtype " + dtype);
}

void set_gguf_tokenizer(GgufBuilder& gguf, const TinyOptions& o) {
  if (!o.tokenizer) return gguf.set_string("tokenizer.ggml.model", "no_vocab");
  const TinyVocabulary& v = tiny_vocabulary();
  std::vector<std::string> merges;
  for (const auto& [left, right] : v.merges) merges.push_back(left + " " + right);
  std::vector<int32_t> types(v.tokens.size(), 1);  // normal
  std::fill_n(types.begin(), 3, 3);                // control
  gguf.set_string("tokenizer.ggml.model", "gpt2");
  gguf.set_string("tokenizer.ggml.pre", "smollm");
  gguf.set_strings("tokenizer.ggml.tokens", v.tokens);
  gguf.set_numbers("tokenizer.ggml.token_type", GgufBuilder::i32, types);
  gguf.set_strings("tokenizer.ggml.merges", merges);
  gguf.set_u32("tokenizer.ggml.bos_token_id", 1);
  gguf.set_u32("tokenizer.ggml.eos_token_id", 2);
  gguf.set_bool("tokenizer.ggml.add_bos_token", false);
  gguf.set_string("tokenizer.chat_template", kChatTemplate);
}

}  // namespace

const TinyVocabulary& tiny_vocabulary() {
  static const TinyVocabulary vocabulary = make_vocabulary();
  return vocabulary;
}

std::vector<TinyTensor> tiny_tensors(uint64_t seed, const TinyOptions& options) {
  return Maker(seed, options).make();
}

std::string encode_floats(const std::vector<float>& values, const std::string& dtype) {
  std::string out;
  const auto put = [&](auto v) { out.append(reinterpret_cast<const char*>(&v), sizeof v); };
  if (dtype == "Q8_0") {
    for (size_t i = 0; i < values.size(); i += 32) {
      float most = 0;
      for (size_t j = 0; j < 32; ++j) most = std::max(most, std::abs(values[i + j]));
      const f16 scale = to_f16(most / 127);
      put(scale.bits);
      for (size_t j = 0; j < 32; ++j) {
        const float q = most > 0 ? std::nearbyint(values[i + j] / to_float(scale)) : 0;
        put(int8_t(std::clamp(q, -127.0f, 127.0f)));
      }
    }
    return out;
  }
  for (float v : values) {
    if (dtype == "F32")
      put(v);
    else if (dtype == "F16")
      put(to_f16(v).bits);
    else if (dtype == "BF16")
      put(to_bf16(v).bits);
    else
      throw std::runtime_error("no dtype " + dtype);
  }
  return out;
}

std::string safetensors_bytes(const std::vector<TinyTensor>& tensors, const std::string& dtype) {
  json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const TinyTensor& t : tensors) {
    const size_t begin = data.size();
    data += encode_floats(t.values, dtype);
    json shape = t.rows == 1 ? json{t.cols} : json{t.rows, t.cols};
    header[t.hf_name] = {
        {"dtype", dtype}, {"shape", shape}, {"data_offsets", {begin, data.size()}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + text + data;
}

void write_tiny_hf(const std::filesystem::path& folder, uint64_t seed, const TinyOptions& o) {
  std::filesystem::create_directories(folder);
  write(folder / "config.json", tiny_config(o).dump(2));
  const std::vector<TinyTensor> tensors = tiny_tensors(seed, o);
  if (o.shards > 1) {
    write_shards(folder, tensors, o);
  } else {
    write(folder / "model.safetensors", safetensors_bytes(tensors, o.dtype));
  }
  if (!o.tokenizer) return;
  write(folder / "tokenizer.json", tiny_tokenizer().dump(1));
  write(folder / "tokenizer_config.json", json{{"tokenizer_class", "GPT2Tokenizer"},
                                               {"bos_token", "<|im_start|>"},
                                               {"eos_token", "<|im_end|>"},
                                               {"add_bos_token", false},
                                               {"chat_template", kChatTemplate}}
                                              .dump(2));
}

void write_tiny_gguf(const std::filesystem::path& path, uint64_t seed, const TinyOptions& o) {
  GgufBuilder gguf;
  gguf.set_string("general.architecture", "llama");
  gguf.set_u32("llama.block_count", uint32_t(o.blocks));
  gguf.set_u32("llama.context_length", uint32_t(o.context));
  gguf.set_u32("llama.embedding_length", uint32_t(o.hidden));
  gguf.set_u32("llama.feed_forward_length", uint32_t(o.mlp));
  gguf.set_u32("llama.attention.head_count", uint32_t(o.heads));
  gguf.set_u32("llama.attention.head_count_kv", uint32_t(o.kv_heads));
  gguf.set_u32("llama.attention.key_length", uint32_t(o.head_dim));
  gguf.set_u32("llama.attention.value_length", uint32_t(o.head_dim));
  gguf.set_u32("llama.rope.dimension_count", uint32_t(o.head_dim));
  gguf.set_f32("llama.rope.freq_base", float(o.rope_theta));
  gguf.set_f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  gguf.set_u32("llama.vocab_size", uint32_t(tiny_vocabulary().tokens.size()));
  set_gguf_tokenizer(gguf, o);
  for (const TinyTensor& t : tiny_tensors(seed, o)) {
    const std::string dtype = t.rows == 1 ? "F32" : o.dtype;
    const auto values = t.paired ? paired_rows(t, size_t(o.head_dim)) : t.values;
    std::vector<uint64_t> dims = {t.cols};
    if (t.rows > 1) dims.push_back(t.rows);
    gguf.add_tensor(t.gguf_name, dims, ggml_id(dtype), encode_floats(values, dtype));
  }
  write(path, gguf.bytes());
}

}  // namespace oq::test
