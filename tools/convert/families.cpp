#include "tools/convert/families.h"

#include <algorithm>
#include <set>

#include <fmt/format.h>

namespace oq::convert {
namespace {

Error unusable(const Checkpoint& c, std::string what, std::string found, std::string hint) {
  return Error({.what = std::move(what),
                .where = c.config().where(),
                .found = std::move(found),
                .hint = std::move(hint)});
}

/// `total` shared evenly by `parts`, both from the file.
int64_t divided(const Checkpoint& c, int64_t total, int64_t parts) {
  if (parts < 1)
    throw unusable(c, "has no attention heads", std::to_string(parts), "it is damaged");
  return total / parts;
}

/// Sizes as OQ can run them. A file may claim any number, so this goes before they are used.
void check_sizes(const Checkpoint& c, const ModelConfig& config) {
  try {
    Metadata m;
    config.store(m);
    ModelConfig::load(m);
  } catch (const Error& e) {
    Error::Parts parts = e.parts();
    parts.where = c.config().where() + ", as " + parts.where;
    parts.hint = "the checkpoint is damaged or of a kind that OQ cannot run";
    throw Error(std::move(parts));
  }
  if (uint64_t(config.blocks) > c.tensors().size()) {
    throw unusable(c, "names more blocks than the checkpoint has tensors",
                   std::to_string(config.blocks), "the checkpoint is incomplete or damaged");
  }
}

Activation hf_activation(const Checkpoint& c, const std::string& name) {
  static constexpr std::pair<std::string_view, Activation> kNames[] = {
      {"silu", Activation::silu},
      {"swish", Activation::silu},
      {"gelu", Activation::gelu},
      {"gelu_new", Activation::gelu_tanh},
      {"gelu_fast", Activation::gelu_tanh},
      {"gelu_pytorch_tanh", Activation::gelu_tanh},
      {"relu", Activation::relu}};
  for (const auto& [known, activation] : kNames) {
    if (known == name) return activation;
  }
  throw unusable(c, "setting 'hidden_act' names an unknown activation", name,
                 "silu, gelu, gelu_new and relu are known");
}

/// A setting that GGUF may give per block; OQ wants the same everywhere.
int64_t uniform(const Checkpoint& c, const std::string& key, int64_t fallback) {
  const Config::Value v = c.config().find(key);
  const auto* list = std::get_if<std::vector<double>>(&v);
  if (list == nullptr) return c.config().integer_or(key, fallback);
  if (list->empty() || std::set<double>(list->begin(), list->end()).size() > 1) {
    throw unusable(c, fmt::format("setting '{}' differs between blocks", key), "",
                   "such models cannot be converted");
  }
  return int64_t(std::clamp(list->front(), 0.0, 1e9));
}

Model llama_from_hf(const Checkpoint& c) {
  const Config& s = c.config();
  if (s.has_group("quantization_config")) {
    throw unusable(c, "the checkpoint is already quantized",
                   s.text_or("quantization_config.quant_method", "quantization_config"),
                   "give the unquantized checkpoint");
  }
  ModelConfig m;
  m.family = "llama";
  m.vocab = s.integer("vocab_size");
  m.hidden = s.integer("hidden_size");
  m.blocks = s.integer("num_hidden_layers");
  m.heads = s.integer("num_attention_heads");
  m.kv_heads = s.integer_or("num_key_value_heads", m.heads);
  m.head_dim = s.integer_or("head_dim", divided(c, m.hidden, m.heads));
  m.mlp = s.integer("intermediate_size");
  m.context = s.integer_or("max_position_embeddings", 2048);
  m.norm_eps = s.number_or("rms_norm_eps", 1e-6);
  m.activation = hf_activation(c, s.text_or("hidden_act", "silu"));
  m.rope_dim = m.head_dim;
  m.qkv_bias = m.o_bias = s.flag_or("attention_bias", false);
  m.mlp_bias = s.flag_or("mlp_bias", false);
  m.tied_head = s.flag_or("tie_word_embeddings", false);
  check_sizes(c, m);
  return {m, hf_rope(s, m.rope_dim, m.context)};
}

std::vector<float> gguf_rope_factors(const Checkpoint& c) {
  const SourceTensor* t = c.find("rope_freqs.weight");
  if (t == nullptr) return {};
  std::vector<float> factors(t->elements());
  c.read_rows(*t, 0, t->rows, factors.data());
  return factors;
}

Model llama_from_gguf(const Checkpoint& c) {
  const Config& s = c.config();
  const std::string arch = c.architecture();
  const auto key = [&](const char* name) { return arch + "." + name; };
  if (s.integer_or(key("expert_count"), 0) != 0) {
    throw unusable(c, "is a mixture of experts", std::to_string(s.integer(key("expert_count"))),
                   "such models cannot be converted yet");
  }
  const SourceTensor* embedding = c.find("token_embd.weight");
  ModelConfig m;
  m.family = "llama";
  m.vocab = s.integer_or(key("vocab_size"), embedding == nullptr ? 0 : int64_t(embedding->rows));
  m.hidden = s.integer(key("embedding_length"));
  m.blocks = s.integer(key("block_count"));
  m.heads = uniform(c, key("attention.head_count"), 0);
  m.kv_heads = uniform(c, key("attention.head_count_kv"), m.heads);
  m.head_dim = s.integer_or(key("attention.key_length"), divided(c, m.hidden, m.heads));
  m.mlp = uniform(c, key("feed_forward_length"), 0);
  m.context = s.integer(key("context_length"));
  m.norm_eps = s.number(key("attention.layer_norm_rms_epsilon"));
  m.rope_dim = s.integer_or(key("rope.dimension_count"), m.head_dim);
  m.qkv_bias = c.find("blk.0.attn_q.bias") != nullptr;
  m.o_bias = c.find("blk.0.attn_output.bias") != nullptr;
  m.mlp_bias = c.find("blk.0.ffn_gate.bias") != nullptr;
  m.tied_head = c.find("output.weight") == nullptr;
  check_sizes(c, m);
  if (s.integer_or(key("attention.value_length"), m.head_dim) != m.head_dim || m.rope_dim < 2) {
    throw unusable(c, "has heads of a shape that is not LLaMA's", "", "it cannot be converted");
  }
  return {m, gguf_rope(s, arch, m.rope_dim, m.context, gguf_rope_factors(c))};
}

const std::vector<TensorNames> kLlamaTensors = {
    {"embedding", "model.embed_tokens.weight", "token_embd.weight"},
    {"blocks.{}.attn_norm", "model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"},
    {"blocks.{}.q", "model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight",
     RowOrder::pairs},
    {"blocks.{}.q.bias", "model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias",
     RowOrder::pairs},
    {"blocks.{}.k", "model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight",
     RowOrder::pairs},
    {"blocks.{}.k.bias", "model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias",
     RowOrder::pairs},
    {"blocks.{}.v", "model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"},
    {"blocks.{}.v.bias", "model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias"},
    {"blocks.{}.o", "model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"},
    {"blocks.{}.o.bias", "model.layers.{}.self_attn.o_proj.bias", "blk.{}.attn_output.bias"},
    {"blocks.{}.mlp_norm", "model.layers.{}.post_attention_layernorm.weight",
     "blk.{}.ffn_norm.weight"},
    {"blocks.{}.gate", "model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"},
    {"blocks.{}.gate.bias", "model.layers.{}.mlp.gate_proj.bias", "blk.{}.ffn_gate.bias"},
    {"blocks.{}.up", "model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"},
    {"blocks.{}.up.bias", "model.layers.{}.mlp.up_proj.bias", "blk.{}.ffn_up.bias"},
    {"blocks.{}.down", "model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"},
    {"blocks.{}.down.bias", "model.layers.{}.mlp.down_proj.bias", "blk.{}.ffn_down.bias"},
    {"final_norm", "model.norm.weight", "output_norm.weight"},
    {"head", "lm_head.weight", "output.weight"},
};

const std::vector<Family> kFamilies = {
    {.name = "llama",
     .hf_model_types = {"llama"},
     .gguf_architectures = {"llama"},
     .from_hf = llama_from_hf,
     .from_gguf = llama_from_gguf,
     .tensors = kLlamaTensors,
     .ignored = {"model.layers.{}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq",
                 "rope_freqs.weight"}},
};

}  // namespace

const Family& find_family(const Checkpoint& checkpoint) {
  const std::string name = checkpoint.architecture();
  std::string known;
  for (const Family& family : kFamilies) {
    const auto& names =
        checkpoint.dialect() == Dialect::hf ? family.hf_model_types : family.gguf_architectures;
    if (std::find(names.begin(), names.end(), name) != names.end()) return family;
    for (std::string_view n : names) known += (known.empty() ? "" : ", ") + std::string(n);
  }
  throw Error({.what = "is of a model family that cannot be converted",
               .where = checkpoint.config().where(),
               .expected = known,
               .found = "'" + name + "'"});
}

Model read_model(const Family& family, const Checkpoint& checkpoint) {
  Model model = checkpoint.dialect() == Dialect::hf ? family.from_hf(checkpoint)
                                                    : family.from_gguf(checkpoint);
  if (model.rope.context_limit > 0) model.config.context = model.rope.context_limit;
  model.config.rope_attention_factor = model.rope.attention_factor;
  return model;
}

}  // namespace oq::convert
