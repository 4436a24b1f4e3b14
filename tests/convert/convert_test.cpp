// Whole conversions of the tiny model: what arrives in the .oq is what was in the checkpoint.

#include "tools/convert/convert.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <map>

#include <doctest/doctest.h>

#include "runtime/config.h"
#include "tests/support.h"
#include "tests/tiny_model.h"
#include "tools/convert/json.h"
#include "tools/convert/rtn.h"
#include "tools/convert/sha256.h"

using namespace oq;
using namespace oq::convert;
using test::TempDir;
using test::TinyOptions;
using test::TinyTensor;

namespace {

namespace fs = std::filesystem;

struct Converted {
  Result result;
  std::shared_ptr<const File> file;
};

Converted run(const fs::path& source, const fs::path& output, const char* scheme = "w16a16",
              const std::function<void(Options&)>& change = {}) {
  Options o;
  o.source = source;
  o.output = output;
  o.scheme = Scheme::parse(scheme);
  o.threads = 2;
  if (change) change(o);
  Converted c;
  c.result = convert::convert(o);
  c.file = File::open(output);
  c.file->verify();
  return c;
}

std::string data_of(const File& file, const TensorInfo& t) {
  const auto bytes = file.data(t);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// The tiny model's tensors by the name they have in a .oq file.
std::map<std::string, TinyTensor> by_oq_name(uint64_t seed, const TinyOptions& o) {
  const std::pair<const char*, const char*> names[] = {{"model.embed_tokens.weight", "embedding"},
                                                       {"model.norm.weight", "final_norm"},
                                                       {"lm_head.weight", "head"},
                                                       {"input_layernorm", "attn_norm"},
                                                       {"post_attention_layernorm", "mlp_norm"},
                                                       {"self_attn.q_proj", "q"},
                                                       {"self_attn.k_proj", "k"},
                                                       {"self_attn.v_proj", "v"},
                                                       {"self_attn.o_proj", "o"},
                                                       {"mlp.gate_proj", "gate"},
                                                       {"mlp.up_proj", "up"},
                                                       {"mlp.down_proj", "down"},
                                                       {"model.layers.", "blocks."},
                                                       {".weight", ""}};
  std::map<std::string, TinyTensor> out;
  for (TinyTensor& t : test::tiny_tensors(seed, o)) {
    std::string name = t.hf_name;
    for (const auto& [from, to] : names) {
      if (const size_t at = name.find(from); at != std::string::npos) {
        name.replace(at, std::strlen(from), to);
      }
    }
    out.emplace(name, std::move(t));
  }
  return out;
}

void check_same_tensors(const File& a, const File& b) {
  REQUIRE(a.tensors().size() == b.tensors().size());
  for (const TensorInfo& t : a.tensors()) {
    CAPTURE(t.name);
    const TensorInfo& u = b.tensor(t.name);
    CHECK(t.kind == u.kind);
    CHECK(t.rows == u.rows);
    CHECK(data_of(a, t) == data_of(b, u));
  }
}

void check_refused(const fs::path& source, const char* says,
                   const std::function<void(Options&)>& change = {}) {
  CAPTURE(says);
  const TempDir dir;
  test::write_file(dir / "out.oq", "as it was");
  try {
    run(source, dir / "out.oq", "w16a16", change);
    FAIL_CHECK("was not refused");
  } catch (const Error& e) {
    CAPTURE(e.what());
    CHECK(std::string(e.what()).find(says) != std::string::npos);
  }
  CHECK(test::read_file(dir / "out.oq") == "as it was");
  CHECK_FALSE(fs::exists(dir / "out.oq.part"));
}

/// The tiny HF model with one thing changed: settings, or tensors.
class Changed {
 public:
  explicit Changed(TinyOptions options = {}) : options_(std::move(options)) {
    test::write_tiny_hf(path(), 3, options_);
  }
  fs::path path() const { return dir_ / "model"; }

  Changed& set(const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json config = read_json(path() / "config.json");
    change(config);
    test::write_file(path() / "config.json", config.dump());
    return *this;
  }
  Changed& tensors(const std::function<void(std::vector<TinyTensor>&)>& change) {
    std::vector<TinyTensor> tensors = test::tiny_tensors(3, options_);
    change(tensors);
    test::write_file(path() / "model.safetensors",
                     test::safetensors_bytes(tensors, options_.dtype));
    return *this;
  }

 private:
  TempDir dir_;
  TinyOptions options_;
};

TinyTensor& named(std::vector<TinyTensor>& tensors, const std::string& hf_name) {
  return *std::find_if(tensors.begin(), tensors.end(),
                       [&](const TinyTensor& t) { return t.hf_name == hf_name; });
}

}  // namespace

TEST_CASE("the tiny model is as advertised") {
  size_t weights = 0;
  for (const TinyTensor& t : test::tiny_tensors(1)) weights += t.values.size();
  CHECK(weights > 250'000);
  CHECK(weights < 280'000);
  CHECK(test::tiny_tensors(1)[0].values != test::tiny_tensors(2)[0].values);
}

TEST_CASE("an HF folder in each dtype arrives bit for bit") {
  const std::pair<const char*, Kind> dtypes[] = {
      {"F32", Kind::f32}, {"F16", Kind::f16}, {"BF16", Kind::bf16}};
  for (const auto& each : dtypes) {
    const char* dtype = each.first;
    const Kind kind = each.second;
    CAPTURE(dtype);
    const TempDir dir;
    TinyOptions o;
    o.dtype = dtype;
    o.biases = true;
    test::write_tiny_hf(dir / "model", 5, o);
    const auto c = run(dir / "model", dir / "out.oq", "w16a16",
                       [kind](Options& options) { options.dtype = kind; });
    size_t compared = 0;
    for (const auto& named : by_oq_name(5, o)) {
      const std::string& name = named.first;
      const TinyTensor& t = named.second;
      CAPTURE(name);
      const TensorInfo& info = c.file->tensor(name);
      const bool vector = t.rows == 1;
      CHECK(info.kind == (vector ? Kind::f32 : kind));
      CHECK(info.rows == t.rows);
      CHECK(info.cols == t.cols);
      std::string expected = test::encode_floats(t.values, dtype);
      if (vector) {  // rounded to the dtype in the checkpoint, kept in f32 here
        std::vector<float> rounded = t.values;
        if (kind == Kind::f16) {
          for (float& x : rounded) x = to_float(to_f16(x));
        } else if (kind == Kind::bf16) {
          for (float& x : rounded) x = to_float(to_bf16(x));
        }
        expected = test::encode_floats(rounded, "F32");
      }
      CHECK(data_of(*c.file, info) == expected);
      ++compared;
    }
    CHECK(compared == 3 * (9 + 7) + 3);
    const ModelConfig config = ModelConfig::load(c.file->metadata());
    CHECK_NOTHROW(check_tensors(*c.file, config));
    CHECK(config.kv_heads == 2);
    CHECK(config.qkv_bias);
    CHECK(config.norm_eps == 1e-5);
    CHECK(c.file->tensor("rope.inv_freq").cols == 8);
  }
}

TEST_CASE("shards and one file give the same") {
  const TempDir dir;
  TinyOptions o;
  test::write_tiny_hf(dir / "one", 6, o);
  o.shards = 4;
  test::write_tiny_hf(dir / "four", 6, o);
  const auto one = run(dir / "one", dir / "one.oq"), four = run(dir / "four", dir / "four.oq");
  check_same_tensors(*one.file, *four.file);
  CHECK(four.file->metadata().get<std::vector<std::string>>("source.files").size() >= 6);
}

TEST_CASE("HF and GGUF of the same weights give the same tensors and config") {
  for (const bool biases : {false, true}) {
    for (const bool tied : {false, true}) {
      const TempDir dir;
      TinyOptions o;
      o.biases = biases;
      o.tied = tied;
      test::write_tiny_hf(dir / "hf", 7, o);
      test::write_tiny_gguf(dir / "model.gguf", 7, o);
      const auto hf = run(dir / "hf", dir / "hf.oq"), gguf = run(dir / "model.gguf", dir / "g.oq");
      check_same_tensors(*hf.file, *gguf.file);
      const ModelConfig config = ModelConfig::load(hf.file->metadata());
      CHECK(config == ModelConfig::load(gguf.file->metadata()));
      CHECK(config.tied_head == tied);
      CHECK((hf.file->find("head") == nullptr) == tied);
    }
  }
}

TEST_CASE("a quantized GGUF arrives as its dequantized values") {
  const TempDir dir;
  TinyOptions o;
  o.dtype = "Q8_0";
  test::write_tiny_gguf(dir / "model.gguf", 8, o);
  const auto c = run(dir / "model.gguf", dir / "out.oq", "w16a16",
                     [](Options& options) { options.dtype = Kind::f32; });
  const std::string bytes = data_of(*c.file, c.file->tensor("blocks.1.v"));
  const TinyTensor t = by_oq_name(8, o)["blocks.1.v"];
  std::vector<float> values(t.values.size());
  REQUIRE(bytes.size() == values.size() * 4);
  std::memcpy(values.data(), bytes.data(), bytes.size());
  // Rounded once to a grid of 1/127 of the largest of 32 weights, itself rounded to f16.
  for (size_t i = 0; i < values.size(); ++i) {
    float most = 0;
    for (size_t j = i / 32 * 32; j < i / 32 * 32 + 32; ++j)
      most = std::max(most, std::abs(t.values[j]));
    CHECK(std::abs(values[i] - t.values[i]) <= 0.57f * most / 127);
  }
}

TEST_CASE("a scheme quantizes linears, embedding and head, and nothing else") {
  const TempDir dir;
  test::write_tiny_hf(dir / "model", 9);
  const auto expected = by_oq_name(9, {});
  for (const char* text : {"w4a16g64", "w3a8", "w2*a8", "w4sa16g32", "w8a16g96"}) {
    for (const int head_bits : {4, 6, 8, 16}) {
      CAPTURE(text);
      CAPTURE(head_bits);
      const auto c =
          run(dir / "model", dir / "out.oq", text, [&](Options& o) { o.head_bits = head_bits; });
      CHECK(c.file->metadata().get<std::string>("scheme") == Scheme::parse(text).str());
      CHECK(c.file->metadata().get<int64_t>("head_bits") == head_bits);
      for (const TensorSpec& spec : tensor_specs(ModelConfig::load(c.file->metadata()))) {
        CAPTURE(spec.name);
        const TensorInfo& info = c.file->tensor(spec.name);
        const bool plain_head = head_bits == 16 && spec.role != Role::linear;
        if (spec.role == Role::f32 || plain_head) {
          CHECK(info.kind == (spec.role == Role::f32 ? Kind::f32 : Kind::f16));
          continue;
        }
        REQUIRE(info.kind == Kind::packed);
        const bool linear = spec.role == Role::linear;
        const Packing packing = linear ? packing_of(Scheme::parse(text)) : head_packing(head_bits);
        CHECK(info.packing == packing);
        const TinyTensor& t = expected.at(spec.name);
        PackedBuilder builder(t.rows, t.cols, packing);
        for (uint64_t r = 0; r < t.rows; ++r) {
          rtn_row(std::span(t.values).subspan(r * t.cols, t.cols), r, builder);
        }
        const auto stored = c.file->data(info);
        CHECK(std::equal(stored.begin(), stored.end(), builder.bytes().begin(),
                         builder.bytes().end()));
      }
    }
  }
}

TEST_CASE("the bytes do not depend on the threads, nor on the run") {
  const TempDir dir;
  test::write_tiny_gguf(dir / "model.gguf", 10);
  for (const char* scheme : {"w16a16", "w4a16g64", "w3a16"}) {
    std::string first;
    for (const int threads : {1, 2, 5, 2}) {
      run(dir / "model.gguf", dir / "out.oq", scheme, [&](Options& o) { o.threads = threads; });
      const std::string bytes = test::read_file(dir / "out.oq");
      if (first.empty()) first = bytes;
      CHECK(bytes == first);
    }
  }
}

TEST_CASE("provenance") {
  const TempDir dir;
  test::write_tiny_gguf(dir / "model.gguf", 11);
  const auto c = run(dir / "model.gguf", dir / "out.oq", "w4a16g64");
  const Metadata& m = c.file->metadata();
  CHECK(m.get<std::string>("source.format") == "gguf");
  CHECK(m.get<std::vector<std::string>>("source.files") == std::vector<std::string>{"model.gguf"});
  CHECK(m.get<std::vector<std::string>>("source.sha256") ==
        std::vector<std::string>{sha256_file(dir / "model.gguf")});
  CHECK(m.get<std::string>("tool.version").find("oq-convert ") == 0);
  CHECK(m.get<std::string>("tool.options") == "--scheme w4a16g64 --head-bits 8 --dtype f16");
  CHECK(m.get<std::string>("tokenizer.kind") == "bpe");
}

TEST_CASE("the vocabulary alone, and a model without one") {
  const TempDir dir;
  TinyOptions o;
  test::write_tiny_gguf(dir / "model.gguf", 12, o);
  const auto vocab = run(dir / "model.gguf", dir / "vocab.oq", "w16a16",
                         [](Options& options) { options.vocab_only = true; });
  CHECK(vocab.file->metadata().contains("tokenizer.kind"));
  CHECK_FALSE(vocab.file->metadata().contains("model.family"));
  CHECK(vocab.file->find("embedding") == nullptr);

  o.tokenizer = false;
  test::write_tiny_gguf(dir / "bare.gguf", 12, o);
  test::write_tiny_hf(dir / "bare", 12, o);
  for (const char* name : {"bare.gguf", "bare"}) {
    const auto bare = run(dir / name, dir / "bare.oq");
    CHECK(bare.file->metadata().get<std::string>("tokenizer.kind") == "none");
    REQUIRE(bare.result.notices.size() == 1);
    CHECK(bare.result.notices[0].find("no tokenizer") != std::string::npos);
    check_refused(dir / name, "no tokenizer", [](Options& options) { options.vocab_only = true; });
  }
}

TEST_CASE("what a model says about its context") {
  const TempDir dir;
  TinyOptions o;
  o.rope_scaling = R"({"type":"dynamic","factor":2.0,"original_max_position_embeddings":128})";
  test::write_tiny_hf(dir / "model", 13, o);
  const auto dynamic = run(dir / "model", dir / "out.oq");
  CHECK(ModelConfig::load(dynamic.file->metadata()).context == 128);
  CHECK(dynamic.result.notices.size() == 1);

  o.rope_scaling = R"({"type":"yarn","factor":4.0,"original_max_position_embeddings":64})";
  test::write_tiny_hf(dir / "model", 13, o);
  const auto yarn = run(dir / "model", dir / "out.oq");
  CHECK(ModelConfig::load(yarn.file->metadata()).rope_attention_factor ==
        doctest::Approx(1.138629436));
  CHECK(ModelConfig::load(yarn.file->metadata()).context == 256);
}

TEST_CASE("weights that do not fit are refused with a way out") {
  const auto change = [](float value) {
    return [=](std::vector<TinyTensor>& t) {
      named(t, "model.layers.1.mlp.up_proj.weight").values[77] = value;
    };
  };
  const auto dtype = [](Kind kind) { return [=](Options& o) { o.dtype = kind; }; };
  Changed large;
  large.tensors(change(70000.0f));
  check_refused(large.path(), "--dtype bf16");
  check_refused(large.path(), "tensor 'model.layers.1.mlp.up_proj.weight'");
  const TempDir dir;
  CHECK_NOTHROW(run(large.path(), dir / "out.oq", "w16a16", dtype(Kind::bf16)));
  CHECK_NOTHROW(run(large.path(), dir / "out.oq", "w16a16", dtype(Kind::f32)));
  check_refused(Changed().tensors(change(std::numeric_limits<float>::max())).path(), "--dtype f32",
                dtype(Kind::bf16));
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    Changed broken;
    broken.tensors(change(bad));
    const std::string place =
        (broken.path() / "config.json").string() + ", tensor 'model.layers.1.mlp.up_proj.weight'";
    check_refused(broken.path(), (place + ": weight 77 is not finite").c_str(), dtype(Kind::f32));
    check_refused(broken.path(),
                  (place + ", row 0, columns 64 to 95: has a weight that is not finite").c_str(),
                  [](Options& o) { o.scheme = Scheme::parse("w4a16g64"); });
  }
}

TEST_CASE("settings that disagree with the tensors") {
  const auto setting = [](const char* key, const nlohmann::json& value, const char* says) {
    CAPTURE(key);
    Changed c;
    c.set([&](nlohmann::json& config) { config[key] = value; });
    check_refused(c.path(), says);
  };
  setting("vocab_size", 299, "'model.embed_tokens.weight' disagrees");
  setting("num_attention_heads", 8, "q_proj.weight' disagrees");
  setting("num_key_value_heads", 3, "k_proj.weight' disagrees");
  setting("num_key_value_heads", 4, "do not share");
  setting("hidden_size", 128, "disagrees");
  setting("intermediate_size", 96, "gate_proj.weight' disagrees");
  setting("num_hidden_layers", 4, "'model.layers.3.input_layernorm.weight' is missing");
  setting("num_hidden_layers", 2, "not part of a llama model");
  setting("num_hidden_layers", 4000, "more blocks");
  setting("num_hidden_layers", int64_t(1) << 60, "model.blocks");
  setting("head_dim", int64_t(1) << 40, "model.head_dim");
  setting("num_attention_heads", 0, "heads");
  setting("hidden_size", "96", "an integer");
  setting("attention_bias", true, "q_proj.bias' is missing");
  setting("model_type", "gpt2", "'gpt2'");
  setting("hidden_act", "mish", "'hidden_act'");
  setting("rms_norm_eps", "small", "rms_norm_eps");
  setting("quantization_config", {{"quant_method", "gptq"}}, "'group_size' is missing");
  setting("quantization_config", {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", 32}},
          "no quantized tensor");
  setting("quantization_config", {{"quant_method", "fp8"}}, "'fp8'");
  setting("rope_scaling", {{"type", "longrope"}, {"factor", 2.0}}, "'longrope'");
}

TEST_CASE("tensors that are missing, misshapen or too many") {
  check_refused(Changed().tensors([](auto& t) { t.erase(t.begin()); }).path(),
                "'model.embed_tokens.weight' is missing");
  check_refused(Changed().tensors([](auto& t) { t.pop_back(); }).path(), "'lm_head.weight'");
  check_refused(Changed()
                    .tensors([](auto& t) {
                      TinyTensor& q = named(t, "model.layers.0.self_attn.q_proj.weight");
                      std::swap(q.rows, q.cols);
                      q.rows *= 2, q.cols /= 2;
                    })
                    .path(),
                "disagrees");
  check_refused(
      Changed()
          .tensors([](auto& t) {
            t.push_back({"model.layers.0.mlp.extra.weight", "", 1, 4, {1, 2, 3, 4}, false});
          })
          .path(),
      "model.layers.0.mlp.extra.weight");

  // What carries no weights, and the head of a tied model, are left out.
  TinyOptions tied;
  tied.tied = true;
  Changed c(tied);
  c.tensors([](auto& t) {
    TinyTensor head = t[0];
    head.hf_name = "lm_head.weight";
    t.push_back(head);
    t.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", "", 1, 2, {1, 2}, false});
  });
  const TempDir dir;
  const auto converted = run(c.path(), dir / "out.oq");
  CHECK(converted.file->find("head") == nullptr);
}

TEST_CASE("folders and files that are no checkpoint") {
  const TempDir dir;
  check_refused(dir / "nothing", "does not exist");
  fs::create_directories(dir / "empty");
  check_refused(dir / "empty", "config.json");
  test::write_file(dir / "text.gguf", "no model at all");
  check_refused(dir / "text.gguf", "not a GGUF file");
  test::write_file(dir / "x.safetensors", "{}");
  check_refused(dir / "x.safetensors", "give the folder");

  Changed torch;
  fs::remove(torch.path() / "model.safetensors");
  check_refused(torch.path(), "holds no weights");
  test::write_file(torch.path() / "pytorch_model.bin", "x");
  check_refused(torch.path(), "safetensors");

  Changed json;
  test::write_file(json.path() / "config.json", "{\"a\": 1,}");
  check_refused(json.path(), "not valid JSON");
  test::write_file(json.path() / "config.json", "{\"a\": 1, \"a\": 2}");
  check_refused(json.path(), "occurs twice");
  test::write_file(json.path() / "config.json", std::string(100000, '['));
  check_refused(json.path(), "config.json");
  test::write_file(json.path() / "config.json", "[]");
  check_refused(json.path(), "not a JSON object");
}

TEST_CASE("checkpoints cut short, or with a bit flipped") {
  const TempDir dir;
  test::write_tiny_gguf(dir / "whole.gguf", 15);
  const std::string whole = test::read_file(dir / "whole.gguf");
  for (size_t n = 0; n < whole.size() - 32; n += 40'009) {
    test::write_file(dir / "cut.gguf", whole.substr(0, n));
    check_refused(dir / "cut.gguf", "cut.gguf");
  }
  Changed folder;
  const fs::path weights = folder.path() / "model.safetensors";
  const std::string all = test::read_file(weights);
  for (size_t n = 0; n < all.size(); n += 40'009) {
    test::write_file(weights, all.substr(0, n));
    check_refused(folder.path(), "model.safetensors");
  }
  // The settings come first in the file: any number may stand there.
  for (size_t at = 24; at < 800; at += 7) {
    std::string bytes = whole;
    bytes[at] = char(bytes[at] ^ (1 << at % 8));
    test::write_file(dir / "flipped.gguf", bytes);
    try {
      run(dir / "flipped.gguf", dir / "out.oq");
    } catch (const Error&) {
    }
  }
}

TEST_CASE("an index that lies") {
  TinyOptions o;
  o.shards = 2;
  const auto index = [](const Changed& c) { return c.path() / "model.safetensors.index.json"; };
  const auto map_to = [&](const char* file) {
    return nlohmann::json{{"weight_map", {{"model.norm.weight", file}}}}.dump();
  };
  Changed c(o);
  test::write_file(index(c), map_to("../model.safetensors"));
  check_refused(c.path(), "not in a file of this folder");
  test::write_file(index(c), map_to("absent.safetensors"));
  check_refused(c.path(), "'absent.safetensors' is not there");
  test::write_file(index(c), map_to("model-00001-of-00002.safetensors"));
  check_refused(c.path(), "not in shard");
  test::write_file(index(c), "{}");
  check_refused(c.path(), "weight_map");
}

TEST_CASE("a checkpoint is never written over") {
  const TempDir dir;
  test::write_tiny_gguf(dir / "model.gguf", 14);
  const std::string before = test::read_file(dir / "model.gguf");
  CHECK_THROWS_AS(run(dir / "model.gguf", dir / "model.gguf"), Error);
  fs::create_hard_link(dir / "model.gguf", dir / "link.oq");
  CHECK_THROWS_AS(run(dir / "model.gguf", dir / "link.oq"), Error);
  CHECK(test::read_file(dir / "model.gguf") == before);
}

TEST_CASE("SHA-256 of FIPS 180-4's examples") {
  const auto hash = [](const std::string& text, size_t piece) {
    Sha256 h;
    for (size_t i = 0; i < text.size(); i += piece) {
      h.update(std::as_bytes(std::span(text).subspan(i, std::min(piece, text.size() - i))));
    }
    return h.hex();
  };
  CHECK(hash("", 1) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(hash("abc", 3) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const std::string two = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  for (size_t piece : {1, 7, 56}) {
    CHECK(hash(two, piece) == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  }
  CHECK(hash(std::string(1'000'000, 'a'), 1000) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}
