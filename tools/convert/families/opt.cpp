// OPT: learned positions, ReLU, biases; in the 350m the norms follow the residual additions, and
// embedding and head are narrower than the blocks. GGUF does not have it.

#include "tools/convert/families/families.h"
#include "tools/convert/families/reading.h"

namespace oq::convert {
namespace {

Model from_hf(const Checkpoint& c) {
  const Config& s = c.config();
  if (!s.flag_or("layer_norm_elementwise_affine", true)) {
    throw unusable(c, "setting 'layer_norm_elementwise_affine' is false", "",
                   "OQ cannot run models whose norms have no weights");
  }
  Model model;
  ModelConfig& m = model.config;
  m.family = "opt";
  m.vocab = s.integer("vocab_size");
  m.hidden = s.integer("hidden_size");
  m.blocks = s.integer("num_hidden_layers");
  m.heads = m.kv_heads = s.integer("num_attention_heads");
  m.head_dim = divided(c, m.hidden, m.heads);
  m.mlp = s.integer("ffn_dim");
  m.context = s.integer_or("max_position_embeddings", 2048);
  m.norm = NormKind::layer;
  m.norm_eps = 1e-5;
  m.post_norm = !s.flag_or("do_layer_norm_before", true);
  m.final_norm = !m.post_norm && !s.flag_or("_remove_final_layer_norm", false);
  const int64_t width = s.integer_or("word_embed_proj_dim", m.hidden);
  m.embedding_width = width == m.hidden ? 0 : width;
  m.positions = PositionKind::learned;
  m.activation = hf_activation(c, "activation_function", "relu");
  m.gated = false;
  m.qkv_bias = m.o_bias = m.mlp_bias = s.flag_or("enable_bias", true);
  m.tied_head = s.flag_or("tie_word_embeddings", true);
  check_sizes(c, m);
  if (width < 1) {
    throw unusable(c, "setting 'word_embed_proj_dim' is not usable", std::to_string(width),
                   "the checkpoint is damaged");
  }
  return model;
}

}  // namespace

const Family& opt_family() {
  static const Family family = {
      .name = "opt",
      .hf_model_types = {"opt"},
      .from_hf = from_hf,
      .prefix = "model.",
      .tensors =
          {
              {"embedding", "model.decoder.embed_tokens", ""},
              {"project_in", "model.decoder.project_in", ""},
              {"positions", "model.decoder.embed_positions", "", after_two},
              {"blocks.{}.attn_norm", "model.decoder.layers.{}.self_attn_layer_norm", ""},
              {"blocks.{}.q", "model.decoder.layers.{}.self_attn.q_proj", ""},
              {"blocks.{}.k", "model.decoder.layers.{}.self_attn.k_proj", ""},
              {"blocks.{}.v", "model.decoder.layers.{}.self_attn.v_proj", ""},
              {"blocks.{}.o", "model.decoder.layers.{}.self_attn.out_proj", ""},
              {"blocks.{}.mlp_norm", "model.decoder.layers.{}.final_layer_norm", ""},
              {"blocks.{}.up", "model.decoder.layers.{}.fc1", ""},
              {"blocks.{}.down", "model.decoder.layers.{}.fc2", ""},
              {"final_norm", "model.decoder.final_layer_norm", ""},
              {"project_out", "model.decoder.project_out", ""},
              {"head", "lm_head", ""},
          },
      .ignored = {"model.decoder.version"}};
  return family;
}

}  // namespace oq::convert
