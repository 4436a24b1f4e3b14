// BLOOM: ALiBi, a norm after the embedding, GELU by tanh, biases everywhere.

#include <fmt/format.h>

#include "tools/convert/families/families.h"
#include "tools/convert/families/reading.h"

namespace oq::convert {
namespace {

/// What settings do not say, because all of the family have it.
ModelConfig bloom() {
  ModelConfig m;
  m.family = "bloom";
  m.norm = NormKind::layer;
  m.embedding_norm = true;
  m.positions = PositionKind::alibi;
  m.activation = Activation::gelu_tanh;
  m.gated = false;
  m.qkv_bias = m.o_bias = m.mlp_bias = true;
  m.tied_head = true;
  return m;
}

Model with_alibi(const Checkpoint& c, ModelConfig m, const std::string& context_key) {
  check_sizes(c, m);
  check_alibi_context(c, m, context_key);
  Model model;
  model.alibi.slopes = alibi_slopes(m.heads);
  model.config = std::move(m);
  return model;
}

Model from_hf(const Checkpoint& c) {
  refuse_flag(c, "apply_residual_connection_post_layernorm");
  const Config& s = c.config();
  ModelConfig m = bloom();
  m.vocab = s.integer("vocab_size");
  m.hidden = integer_of(s, {"n_embed", "hidden_size"});
  m.blocks = integer_of(s, {"n_layer", "num_hidden_layers"});
  m.heads = m.kv_heads = integer_of(s, {"n_head", "num_attention_heads"});
  m.head_dim = divided(c, m.hidden, m.heads);
  m.mlp = four_times(m.hidden);
  m.context = s.integer_or("seq_length", 2048);
  m.norm_eps = s.number_or("layer_norm_epsilon", 1e-5);
  m.tied_head = s.flag_or("tie_word_embeddings", true);
  return with_alibi(c, std::move(m), "seq_length");
}

Model from_gguf(const Checkpoint& c) {
  const Config& s = c.config();
  const auto key = [&](const char* name) { return fmt::format("bloom.{}", name); };
  ModelConfig m = bloom();
  m.vocab = gguf_vocab(c);
  m.hidden = s.integer(key("embedding_length"));
  m.blocks = s.integer(key("block_count"));
  m.heads = m.kv_heads = uniform(c, key("attention.head_count"), 0);
  m.head_dim = divided(c, m.hidden, m.heads);
  m.mlp = uniform(c, key("feed_forward_length"), four_times(m.hidden));
  m.context = s.integer(key("context_length"));
  m.norm_eps = s.number(key("attention.layer_norm_epsilon"));
  return with_alibi(c, std::move(m), key("context_length"));
}

}  // namespace

const Family& bloom_family() {
  static const Family family = {
      .name = "bloom",
      .hf_model_types = {"bloom"},
      .gguf_architectures = {"bloom"},
      .from_hf = from_hf,
      .from_gguf = from_gguf,
      .prefix = "transformer.",
      .tensors =
          {
              {"embedding", "transformer.word_embeddings", "token_embd"},
              {"embedding_norm", "transformer.word_embeddings_layernorm", "token_embd_norm"},
              {"blocks.{}.attn_norm", "transformer.h.{}.input_layernorm", "blk.{}.attn_norm"},
              {"blocks.{}.q", "transformer.h.{}.self_attention.query_key_value", "blk.{}.attn_qkv",
               grouped_q, stacked_q},
              {"blocks.{}.k", "transformer.h.{}.self_attention.query_key_value", "blk.{}.attn_qkv",
               grouped_k, stacked_k},
              {"blocks.{}.v", "transformer.h.{}.self_attention.query_key_value", "blk.{}.attn_qkv",
               grouped_v, stacked_v},
              {"blocks.{}.o", "transformer.h.{}.self_attention.dense", "blk.{}.attn_output"},
              {"blocks.{}.mlp_norm", "transformer.h.{}.post_attention_layernorm",
               "blk.{}.ffn_norm"},
              {"blocks.{}.up", "transformer.h.{}.mlp.dense_h_to_4h", "blk.{}.ffn_up"},
              {"blocks.{}.down", "transformer.h.{}.mlp.dense_4h_to_h", "blk.{}.ffn_down"},
              {"final_norm", "transformer.ln_f", "output_norm"},
              {"head", "lm_head", "output"},
          },
      .ignored = {}};
  return family;
}

}  // namespace oq::convert
