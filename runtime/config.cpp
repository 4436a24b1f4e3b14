#include "runtime/config.h"

#include <array>
#include <cmath>
#include <utility>

#include <fmt/format.h>

namespace oq {
namespace {

constexpr std::array<std::pair<Activation, std::string_view>, 4> kActivations = {{
    {Activation::silu, "silu"},
    {Activation::gelu, "gelu"},
    {Activation::gelu_tanh, "gelu_tanh"},
    {Activation::relu, "relu"},
}};

constexpr int64_t kMaxWidth = 1 << 24;

void require(bool ok, const char* what, std::string expected, std::string found) {
  if (ok) return;
  throw Error({.what = what,
               .where = "model config",
               .expected = std::move(expected),
               .found = std::move(found),
               .hint = "convert the checkpoint again"});
}

}  // namespace

std::string_view to_string(Activation a) {
  for (const auto& [value, name] : kActivations) {
    if (value == a) return name;
  }
  return "?";
}

Activation parse_activation(std::string_view name) {
  for (const auto& [value, known] : kActivations) {
    if (known == name) return value;
  }
  throw Error({.what = "unknown activation",
               .expected = "silu, gelu, gelu_tanh or relu",
               .found = "'" + std::string(name) + "'"});
}

void ModelConfig::store(Metadata& m) const {
  m.set("model.family", family);
  m.set("model.vocab", vocab);
  m.set("model.hidden", hidden);
  m.set("model.blocks", blocks);
  m.set("model.heads", heads);
  m.set("model.kv_heads", kv_heads);
  m.set("model.head_dim", head_dim);
  m.set("model.mlp", mlp);
  m.set("model.context", context);
  m.set("model.norm_eps", norm_eps);
  m.set("model.activation", std::string(to_string(activation)));
  m.set("model.rope_dim", rope_dim);
  m.set("model.rope_attention_factor", rope_attention_factor);
  m.set("model.qkv_bias", qkv_bias);
  m.set("model.o_bias", o_bias);
  m.set("model.mlp_bias", mlp_bias);
  m.set("model.tied_head", tied_head);
}

ModelConfig ModelConfig::load(const Metadata& m) {
  ModelConfig c;
  c.family = m.get<std::string>("model.family");
  c.vocab = m.get_int("model.vocab", 1, kMaxWidth);
  c.hidden = m.get_int("model.hidden", 1, kMaxWidth);
  c.blocks = m.get_int("model.blocks", 1, 4096);
  c.heads = m.get_int("model.heads", 1, 65536);
  c.kv_heads = m.get_int("model.kv_heads", 1, 65536);
  c.head_dim = m.get_int("model.head_dim", 1, 4096);
  c.mlp = m.get_int("model.mlp", 1, kMaxWidth);
  c.context = m.get_int("model.context", 1, 1 << 30);
  c.norm_eps = m.get<double>("model.norm_eps");
  c.activation = parse_activation(m.get<std::string>("model.activation"));
  c.rope_dim = m.get_int("model.rope_dim", 0, 4096);
  c.rope_attention_factor = m.get<double>("model.rope_attention_factor");
  c.qkv_bias = m.get<bool>("model.qkv_bias");
  c.o_bias = m.get<bool>("model.o_bias");
  c.mlp_bias = m.get<bool>("model.mlp_bias");
  c.tied_head = m.get<bool>("model.tied_head");
  c.check();
  return c;
}

ModelConfig ModelConfig::load(const File& file) {
  return with_place(file.path().string(), [&] { return load(file.metadata()); });
}

void ModelConfig::check() const {
  require(blocks > 0 && hidden > 0 && vocab > 0 && mlp > 0 && heads > 0 && kv_heads > 0 &&
              head_dim > 0 && context > 0,
          "a size is not positive", "all sizes above 0",
          fmt::format("blocks {}, hidden {}, vocab {}, mlp {}, heads {}, kv_heads {}, head_dim {}, "
                      "context {}",
                      blocks, hidden, vocab, mlp, heads, kv_heads, head_dim, context));
  require(heads % kv_heads == 0, "query heads do not share KV heads evenly",
          "heads to be a multiple of kv_heads", fmt::format("{} and {}", heads, kv_heads));
  require(rope_dim % 2 == 0 && rope_dim <= head_dim, "rotated dimensions do not fit a head",
          fmt::format("an even number up to {}", head_dim), std::to_string(rope_dim));
  require(std::isfinite(norm_eps) && norm_eps >= 0, "norm_eps is not usable",
          "a finite number from 0", fmt::format("{}", norm_eps));
  require(std::isfinite(rope_attention_factor), "rope_attention_factor is not usable",
          "a finite number", fmt::format("{}", rope_attention_factor));
}

std::vector<TensorSpec> tensor_specs(const ModelConfig& c) {
  std::vector<TensorSpec> specs;
  specs.push_back({"embedding", Role::embedding, c.vocab, c.hidden});
  if (c.rope_dim > 0) specs.push_back({"rope.inv_freq", Role::vector, 1, c.rope_dim / 2});
  for (int64_t b = 0; b < c.blocks; ++b) {
    const std::string prefix = fmt::format("blocks.{}.", b);
    const auto vector = [&](const char* name, int64_t n) {
      specs.push_back({prefix + name, Role::vector, 1, n});
    };
    const auto linear = [&](const char* name, int64_t out, int64_t in, bool bias) {
      specs.push_back({prefix + name, Role::linear, out, in});
      if (bias) specs.push_back({prefix + name + ".bias", Role::vector, 1, out});
    };
    vector("attn_norm", c.hidden);
    linear("q", c.q_width(), c.hidden, c.qkv_bias);
    linear("k", c.kv_width(), c.hidden, c.qkv_bias);
    linear("v", c.kv_width(), c.hidden, c.qkv_bias);
    linear("o", c.hidden, c.q_width(), c.o_bias);
    vector("mlp_norm", c.hidden);
    linear("gate", c.mlp, c.hidden, c.mlp_bias);
    linear("up", c.mlp, c.hidden, c.mlp_bias);
    linear("down", c.hidden, c.mlp, c.mlp_bias);
  }
  specs.push_back({"final_norm", Role::vector, 1, c.hidden});
  if (!c.tied_head) specs.push_back({"head", Role::head, c.vocab, c.hidden});
  return specs;
}

void check_tensors(const File& file, const ModelConfig& config) {
  for (const TensorSpec& spec : tensor_specs(config)) {
    const TensorInfo& info = file.tensor(spec.name);
    const std::string where = file.path().string() + ", tensor '" + spec.name + "'";
    if (int64_t(info.rows) != spec.rows || int64_t(info.cols) != spec.cols) {
      throw Error({.what = "shape disagrees with the model's config",
                   .where = where,
                   .expected = fmt::format("[{}, {}]", spec.rows, spec.cols),
                   .found = fmt::format("[{}, {}]", info.rows, info.cols),
                   .hint = "convert the checkpoint again"});
    }
    const bool vector = spec.role == Role::vector;
    if (vector ? info.kind != Kind::f32 : info.kind == Kind::bytes) {
      throw Error({.what = "tensor is of a kind that cannot be used here",
                   .where = where,
                   .expected = vector ? "f32" : "f32, f16, bf16 or packed",
                   .found = std::string(to_string(info.kind)),
                   .hint = "convert the checkpoint again"});
    }
  }
}

LinearBytes linear_bytes(const File& file, const ModelConfig& config) {
  LinearBytes sum;
  for (const TensorSpec& spec : tensor_specs(config)) {
    if (spec.role != Role::linear) continue;
    sum.bytes += file.tensor(spec.name).bytes;
    sum.weights += uint64_t(spec.rows) * uint64_t(spec.cols);
  }
  return sum;
}

}  // namespace oq
