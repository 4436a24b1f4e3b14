// Whole conversions of the tiny model: what arrives in the .oq is what was in the checkpoint.

#include "tools/convert/convert.h"

#include <algorithm>
#include <cstring>
#include <map>

#include <doctest/doctest.h>

#include "runtime/config.h"
#include "tests/convert/conversion.h"
#include "tests/tiny_model.h"
#include "tools/convert/rtn.h"
#include "tools/convert/sha256.h"

using namespace oq;
using namespace oq::convert;
using test::check_refused;
using test::check_same_tensors;
using test::converted;
using test::TempDir;
using test::TinyOptions;
using test::TinyTensor;

namespace {

namespace fs = std::filesystem;

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
    const auto c = converted(dir / "model", dir / "out.oq", "w16a16",
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
  const auto one = converted(dir / "one", dir / "one.oq"),
             four = converted(dir / "four", dir / "four.oq");
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
      const auto hf = converted(dir / "hf", dir / "hf.oq"),
                 gguf = converted(dir / "model.gguf", dir / "g.oq");
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
  const auto c = converted(dir / "model.gguf", dir / "out.oq", "w16a16",
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
      const auto c = converted(dir / "model", dir / "out.oq", text,
                               [&](Options& o) { o.head_bits = head_bits; });
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
      converted(dir / "model.gguf", dir / "out.oq", scheme,
                [&](Options& o) { o.threads = threads; });
      const std::string bytes = test::read_file(dir / "out.oq");
      if (first.empty()) first = bytes;
      CHECK(bytes == first);
    }
  }
}

TEST_CASE("provenance") {
  const TempDir dir;
  test::write_tiny_gguf(dir / "model.gguf", 11);
  const auto c = converted(dir / "model.gguf", dir / "out.oq", "w4a16g64");
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
  const auto vocab = converted(dir / "model.gguf", dir / "vocab.oq", "w16a16",
                               [](Options& options) { options.vocab_only = true; });
  CHECK(vocab.file->metadata().contains("tokenizer.kind"));
  CHECK_FALSE(vocab.file->metadata().contains("model.family"));
  CHECK(vocab.file->find("embedding") == nullptr);

  o.tokenizer = false;
  test::write_tiny_gguf(dir / "bare.gguf", 12, o);
  test::write_tiny_hf(dir / "bare", 12, o);
  for (const char* name : {"bare.gguf", "bare"}) {
    const auto bare = converted(dir / name, dir / "bare.oq");
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
  const auto dynamic = converted(dir / "model", dir / "out.oq");
  CHECK(ModelConfig::load(dynamic.file->metadata()).context == 128);
  CHECK(dynamic.result.notices.size() == 1);

  o.rope_scaling = R"({"type":"yarn","factor":4.0,"original_max_position_embeddings":64})";
  test::write_tiny_hf(dir / "model", 13, o);
  const auto yarn = converted(dir / "model", dir / "out.oq");
  CHECK(ModelConfig::load(yarn.file->metadata()).rope_attention_factor ==
        doctest::Approx(1.138629436));
  CHECK(ModelConfig::load(yarn.file->metadata()).context == 256);
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
