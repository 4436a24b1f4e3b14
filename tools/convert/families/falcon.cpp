// Falcon: attention and MLP side by side, one norm (7B) or two (40B, 180B) before them, one KV head
// or few; or, in the RefinedWeb models, the classic order with ALiBi.

#include <cmath>

#include <fmt/format.h>

#include "tools/convert/families/families.h"
#include "tools/convert/families/reading.h"

namespace oq::convert {
namespace {

/// Norms before attention and MLP where they are parallel.
int64_t parallel_norms(const Checkpoint& c, bool grouped) {
  const int64_t norms = c.config().integer_or("num_ln_in_parallel_attn", grouped ? 2 : 1);
  if (norms == 1 || (norms == 2 && grouped)) return norms;
  throw unusable(c, "setting 'num_ln_in_parallel_attn' is not one that Falcon models have",
                 std::to_string(norms), "OQ cannot run such models");
}

ModelConfig hf_config(const Checkpoint& c) {
  const Config& s = c.config();
  // The first releases, under their authors' names for them, leave out other things than
  // transformers' own model does.
  const bool first_releases = c.architecture() != "falcon";
  const bool grouped = s.flag_or("new_decoder_architecture", s.contains("n_head_kv"));
  ModelConfig m;
  m.family = "falcon";
  m.vocab = s.integer("vocab_size");
  m.hidden = integer_of(s, {"hidden_size", "n_embed"});
  m.blocks = integer_of(s, {"num_hidden_layers", "n_layer"});
  m.heads = integer_of(s, {"num_attention_heads", "n_head"});
  m.head_dim = divided(c, m.hidden, m.heads);
  if (grouped) {
    m.kv_heads = s.integer_or("num_kv_heads", s.integer_or("n_head_kv", m.heads));
  } else {
    m.kv_heads = s.flag_or("multi_query", !first_releases) ? 1 : m.heads;
  }
  m.mlp = s.integer_or("ffn_hidden_size", four_times(m.hidden));
  m.context = s.integer_or("max_position_embeddings", 2048);
  m.norm = NormKind::layer;
  m.norm_eps = s.number_or("layer_norm_epsilon", 1e-5);
  m.parallel = s.flag_or("parallel_attn", grouped || !first_releases);
  if (grouped && !m.parallel) {
    throw unusable(c, "setting 'parallel_attn' is false with 'new_decoder_architecture'", "",
                   "no such model exists");
  }
  m.shared_norm = m.parallel && parallel_norms(c, grouped) == 1;
  m.activation = hf_activation(c, "activation", "gelu");
  m.gated = false;
  m.qkv_bias = m.o_bias = m.mlp_bias = s.flag_or("bias", false);
  m.tied_head = s.flag_or("tie_word_embeddings", true);
  return m;
}

Model from_hf(const Checkpoint& c) {
  refuse_flag(c, "apply_residual_connection_post_layernorm");
  Model model;
  ModelConfig& m = model.config = hf_config(c);
  if (c.config().flag_or("alibi", false)) {
    m.positions = PositionKind::alibi;
    check_sizes(c, m);
    check_alibi_context(c, m, "max_position_embeddings");
    // Falcon was trained in bf16 with these values, added to the scores before their division.
    model.alibi = {.slopes = alibi_slopes(m.heads),
                   .in_bf16 = true,
                   .divisor = float(std::sqrt(double(m.head_dim)))};
    return model;
  }
  m.rope_dim = m.head_dim;
  check_sizes(c, m);
  model.rope = hf_rope(c.config(), m.rope_dim, m.context);
  return model;
}

Model from_gguf(const Checkpoint& c) {
  const Config& s = c.config();
  const auto key = [&](const char* name) { return fmt::format("falcon.{}", name); };
  Model model;
  ModelConfig& m = model.config;
  m.family = "falcon";
  m.vocab = gguf_vocab(c);
  m.hidden = s.integer(key("embedding_length"));
  m.blocks = s.integer(key("block_count"));
  m.heads = uniform(c, key("attention.head_count"), 0);
  m.kv_heads = uniform(c, key("attention.head_count_kv"), 1);
  m.head_dim = divided(c, m.hidden, m.heads);
  m.mlp = uniform(c, key("feed_forward_length"), four_times(m.hidden));
  m.context = s.integer(key("context_length"));
  m.norm = NormKind::layer;
  m.norm_eps = s.number(key("attention.layer_norm_epsilon"));
  m.parallel = true;
  m.shared_norm = c.find("blk.0.attn_norm_2.weight") == nullptr;
  m.rope_dim = m.head_dim;
  m.activation = Activation::gelu;
  m.gated = false;
  m.qkv_bias = c.find("blk.0.attn_qkv.bias") != nullptr;
  m.o_bias = c.find("blk.0.attn_output.bias") != nullptr;
  m.mlp_bias = c.find("blk.0.ffn_up.bias") != nullptr;
  m.tied_head = true;
  check_sizes(c, m);
  model.rope = gguf_rope(s, "falcon", m.rope_dim, m.context, gguf_rope_factors(c));
  return model;
}

}  // namespace

const Family& falcon_family() {
  static const Family family = {
      .name = "falcon",
      .hf_model_types = {"falcon", "RefinedWeb", "RefinedWebModel"},
      .gguf_architectures = {"falcon"},
      .from_hf = from_hf,
      .from_gguf = from_gguf,
      .prefix = "transformer.",
      .tensors =
          {
              {"embedding", "transformer.word_embeddings", "token_embd"},
              // Where GGUF has two norms, the MLP's is the one called as if there was one.
              {"blocks.{}.attn_norm", "transformer.h.{}.ln_attn", "blk.{}.attn_norm_2"},
              {"blocks.{}.attn_norm", "transformer.h.{}.input_layernorm", "blk.{}.attn_norm"},
              {"blocks.{}.mlp_norm", "transformer.h.{}.ln_mlp", "blk.{}.attn_norm"},
              {"blocks.{}.mlp_norm", "transformer.h.{}.post_attention_layernorm", ""},
              {"blocks.{}.q", "transformer.h.{}.self_attention.query_key_value", "blk.{}.attn_qkv",
               grouped_q, stacked_q},
              {"blocks.{}.k", "transformer.h.{}.self_attention.query_key_value", "blk.{}.attn_qkv",
               grouped_k, stacked_k},
              {"blocks.{}.v", "transformer.h.{}.self_attention.query_key_value", "blk.{}.attn_qkv",
               grouped_v, stacked_v},
              {"blocks.{}.o", "transformer.h.{}.self_attention.dense", "blk.{}.attn_output"},
              {"blocks.{}.up", "transformer.h.{}.mlp.dense_h_to_4h", "blk.{}.ffn_up"},
              {"blocks.{}.down", "transformer.h.{}.mlp.dense_4h_to_h", "blk.{}.ffn_down"},
              {"final_norm", "transformer.ln_f", "output_norm"},
              {"head", "lm_head", "output"},
          },
      .ignored = {"transformer.h.{}.self_attention.rotary.inv_freq",
                  "transformer.h.{}.self_attention.rotary_emb.inv_freq",
                  "transformer.h.{}.self_attention.maybe_rotary.inv_freq", "rope_freqs.weight"}};
  return family;
}

}  // namespace oq::convert
