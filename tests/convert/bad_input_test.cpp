// Checkpoints that are broken, contradict themselves, or cannot be kept: each is refused by name.

#include <algorithm>
#include <functional>
#include <limits>

#include <doctest/doctest.h>

#include "tests/convert/conversion.h"
#include "tests/tiny_model.h"
#include "tools/convert/json.h"

using namespace oq;
using namespace oq::convert;
using test::check_refused;
using test::converted;
using test::TempDir;
using test::TinyOptions;
using test::TinyTensor;

namespace {

namespace fs = std::filesystem;

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
  CHECK_NOTHROW(converted(large.path(), dir / "out.oq", "w16a16", dtype(Kind::bf16)));
  CHECK_NOTHROW(converted(large.path(), dir / "out.oq", "w16a16", dtype(Kind::f32)));
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
  CHECK(converted(c.path(), dir / "out.oq").file->find("head") == nullptr);
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
      converted(dir / "flipped.gguf", dir / "out.oq");
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
  CHECK_THROWS_AS(converted(dir / "model.gguf", dir / "model.gguf"), Error);
  fs::create_hard_link(dir / "model.gguf", dir / "link.oq");
  CHECK_THROWS_AS(converted(dir / "model.gguf", dir / "link.oq"), Error);
  CHECK(test::read_file(dir / "model.gguf") == before);
}
