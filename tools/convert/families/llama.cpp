// LLaMA, and those that took its block: Mistral (a sliding window), Mixtral (experts), Qwen2
// (biases on q, k and v).

#include <algorithm>

#include <fmt/format.h>

#include "tools/convert/families/families.h"
#include "tools/convert/families/reading.h"

namespace oq::convert {
namespace {

/// What transformers takes where config.json is silent.
struct Defaults {
  const char* family;
  int64_t context;
  double norm_eps;
  double rope_theta = 10000.0;
};

ModelConfig hf_config(const Checkpoint& c, const Defaults& defaults) {
  const Config& s = c.config();
  ModelConfig m;
  m.family = defaults.family;
  m.vocab = s.integer("vocab_size");
  m.hidden = s.integer("hidden_size");
  m.blocks = s.integer("num_hidden_layers");
  m.heads = s.integer("num_attention_heads");
  m.kv_heads = s.integer_or("num_key_value_heads", m.heads);
  m.head_dim = s.integer_or("head_dim", divided(c, m.hidden, m.heads));
  m.mlp = s.integer("intermediate_size");
  m.context = s.integer_or("max_position_embeddings", defaults.context);
  m.norm_eps = s.number_or("rms_norm_eps", defaults.norm_eps);
  m.activation = hf_activation(c, "hidden_act", "silu");
  m.rope_dim = m.head_dim;
  m.tied_head = s.flag_or("tie_word_embeddings", false);
  return m;
}

Model with_rope(const Checkpoint& c, ModelConfig m, const Defaults& defaults) {
  check_sizes(c, m);
  Model model;
  model.rope = hf_rope(c.config(), m.rope_dim, m.context, defaults.rope_theta);
  model.config = std::move(m);
  return model;
}

Model llama_from_hf(const Checkpoint& c) {
  const Defaults defaults = {.family = "llama", .context = 2048, .norm_eps = 1e-6};
  ModelConfig m = hf_config(c, defaults);
  m.qkv_bias = m.o_bias = c.config().flag_or("attention_bias", false);
  m.mlp_bias = c.config().flag_or("mlp_bias", false);
  return with_rope(c, std::move(m), defaults);
}

Model mistral_from_hf(const Checkpoint& c) {
  const Defaults defaults = {.family = "mistral", .context = 131072, .norm_eps = 1e-6};
  ModelConfig m = hf_config(c, defaults);
  m.window = c.config().integer_or("sliding_window", 0);
  return with_rope(c, std::move(m), defaults);
}

Model mixtral_from_hf(const Checkpoint& c) {
  const Defaults defaults = {
      .family = "mixtral", .context = 131072, .norm_eps = 1e-5, .rope_theta = 1e6};
  ModelConfig m = hf_config(c, defaults);
  m.window = c.config().integer_or("sliding_window", 0);
  m.experts = c.config().integer_or("num_local_experts", 8);
  m.experts_used = c.config().integer_or("num_experts_per_tok", 2);
  if (m.experts < 1) {
    throw unusable(c, "setting 'num_local_experts' leaves the router no expert to choose",
                   std::to_string(m.experts), "the checkpoint is damaged");
  }
  return with_rope(c, std::move(m), defaults);
}

/// Qwen2 may slide its window over the upper blocks only; OQ has one window for all.
int64_t qwen2_window(const Checkpoint& c, int64_t blocks) {
  const Config& s = c.config();
  if (!s.flag_or("use_sliding_window", false)) return 0;
  const auto kinds = s.texts("layer_types");
  const int64_t full = kinds.empty() ? std::clamp<int64_t>(s.integer_or("max_window_layers", 28), 0,
                                                           std::max<int64_t>(blocks, 0))
                                     : std::count(kinds.begin(), kinds.end(), "full_attention");
  if (full == (kinds.empty() ? blocks : int64_t(kinds.size()))) return 0;
  if (full == 0) return s.integer_or("sliding_window", 4096);
  throw unusable(c,
                 fmt::format("setting '{}' gives only some blocks a sliding window",
                             kinds.empty() ? "max_window_layers" : "layer_types"),
                 fmt::format("{} blocks without", full), "such models cannot be converted yet");
}

Model qwen2_from_hf(const Checkpoint& c) {
  const Defaults defaults = {.family = "qwen2", .context = 32768, .norm_eps = 1e-6};
  ModelConfig m = hf_config(c, defaults);
  m.qkv_bias = true;
  m.window = qwen2_window(c, m.blocks);
  return with_rope(c, std::move(m), defaults);
}

Model from_gguf(const Checkpoint& c) {
  const Config& s = c.config();
  const std::string arch = c.architecture();
  const auto key = [&](const char* name) { return arch + "." + name; };
  ModelConfig m;
  m.vocab = gguf_vocab(c);
  m.hidden = s.integer(key("embedding_length"));
  m.blocks = s.integer(key("block_count"));
  m.heads = uniform(c, key("attention.head_count"), 0);
  m.kv_heads = uniform(c, key("attention.head_count_kv"), m.heads);
  m.head_dim = s.integer_or(key("attention.key_length"), divided(c, m.hidden, m.heads));
  m.mlp = uniform(c, key("feed_forward_length"), 0);
  m.context = s.integer(key("context_length"));
  m.norm_eps = s.number(key("attention.layer_norm_rms_epsilon"));
  m.rope_dim = s.integer_or(key("rope.dimension_count"), m.head_dim);
  m.window = s.integer_or(key("attention.sliding_window"), 0);
  m.experts = s.integer_or(key("expert_count"), 0);
  if (m.experts != 0) m.experts_used = s.integer(key("expert_used_count"));
  m.family = m.experts != 0 ? "mixtral" : arch;
  m.qkv_bias = c.find("blk.0.attn_q.bias") != nullptr;
  m.o_bias = c.find("blk.0.attn_output.bias") != nullptr;
  m.mlp_bias = c.find("blk.0.ffn_gate.bias") != nullptr;
  m.tied_head = true;
  check_sizes(c, m);
  if (s.integer_or(key("attention.value_length"), m.head_dim) != m.head_dim || m.rope_dim < 2) {
    throw unusable(c, "has heads of a shape that is not LLaMA's", "", "it cannot be converted");
  }
  Model model;
  model.rope = gguf_rope(s, arch, m.rope_dim, m.context, gguf_rope_factors(c));
  model.config = std::move(m);
  return model;
}

/// `gguf_qk` is how GGUF keeps the rows of q and k.
std::vector<TensorNames> tensors(Layout gguf_qk) {
  return {
      {"embedding", "model.embed_tokens", "token_embd"},
      {"blocks.{}.attn_norm", "model.layers.{}.input_layernorm", "blk.{}.attn_norm"},
      {"blocks.{}.q", "model.layers.{}.self_attn.q_proj", "blk.{}.attn_q", whole, gguf_qk},
      {"blocks.{}.k", "model.layers.{}.self_attn.k_proj", "blk.{}.attn_k", whole, gguf_qk},
      {"blocks.{}.v", "model.layers.{}.self_attn.v_proj", "blk.{}.attn_v"},
      {"blocks.{}.o", "model.layers.{}.self_attn.o_proj", "blk.{}.attn_output"},
      {"blocks.{}.mlp_norm", "model.layers.{}.post_attention_layernorm", "blk.{}.ffn_norm"},
      {"blocks.{}.gate", "model.layers.{}.mlp.gate_proj", "blk.{}.ffn_gate"},
      {"blocks.{}.up", "model.layers.{}.mlp.up_proj", "blk.{}.ffn_up"},
      {"blocks.{}.down", "model.layers.{}.mlp.down_proj", "blk.{}.ffn_down"},
      {"blocks.{}.router", "model.layers.{}.block_sparse_moe.gate", "blk.{}.ffn_gate_inp"},
      {"blocks.{}.experts.{}.gate", "model.layers.{}.block_sparse_moe.experts.{}.w1",
       "blk.{}.ffn_gate_exps", whole, expert_of_all},
      {"blocks.{}.experts.{}.up", "model.layers.{}.block_sparse_moe.experts.{}.w3",
       "blk.{}.ffn_up_exps", whole, expert_of_all},
      {"blocks.{}.experts.{}.down", "model.layers.{}.block_sparse_moe.experts.{}.w2",
       "blk.{}.ffn_down_exps", whole, expert_of_all},
      // GGUF of before April 2024 has a tensor for each expert.
      {"blocks.{}.experts.{}.gate", "", "blk.{}.ffn_gate.{}"},
      {"blocks.{}.experts.{}.up", "", "blk.{}.ffn_up.{}"},
      {"blocks.{}.experts.{}.down", "", "blk.{}.ffn_down.{}"},
      {"final_norm", "model.norm", "output_norm"},
      {"head", "lm_head", "output"},
  };
}

const std::vector<std::string_view> kIgnored = {"model.layers.{}.self_attn.rotary_emb.inv_freq",
                                                "model.rotary_emb.inv_freq", "rope_freqs.weight"};

}  // namespace

const Family& llama_family() {
  // GGUF knows Mistral and Mixtral as LLaMA.
  static const Family family = {.name = "llama",
                                .hf_model_types = {"llama"},
                                .gguf_architectures = {"llama"},
                                .from_hf = llama_from_hf,
                                .from_gguf = from_gguf,
                                .prefix = "model.",
                                .tensors = tensors(pairs),
                                .ignored = kIgnored};
  return family;
}

const Family& mistral_family() {
  static const Family family = {.name = "mistral",
                                .hf_model_types = {"mistral"},
                                .from_hf = mistral_from_hf,
                                .prefix = "model.",
                                .tensors = tensors(pairs),
                                .ignored = kIgnored};
  return family;
}

const Family& mixtral_family() {
  static const Family family = {.name = "mixtral",
                                .hf_model_types = {"mixtral"},
                                .from_hf = mixtral_from_hf,
                                .prefix = "model.",
                                .tensors = tensors(pairs),
                                .ignored = kIgnored};
  return family;
}

const Family& qwen2_family() {
  static const Family family = {.name = "qwen2",
                                .hf_model_types = {"qwen2"},
                                .gguf_architectures = {"qwen2"},
                                .from_hf = qwen2_from_hf,
                                .from_gguf = from_gguf,
                                .prefix = "model.",
                                .tensors = tensors(whole),
                                .ignored = kIgnored};
  return family;
}

}  // namespace oq::convert
