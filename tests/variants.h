#pragma once

#include <vector>

#include "runtime/config.h"
#include "tests/tiny_oq.h"

namespace oq::test {

/// What the families of the converter's table have that LLaMA has not, in other mixtures, beside
/// LLaMA itself.
inline std::vector<ModelConfig> variant_configs() {
  std::vector<ModelConfig> configs(7, tiny_config());
  const auto without_rope = [](ModelConfig& c, PositionKind kind) {
    c.positions = kind;
    c.rope_dim = 0;
  };
  ModelConfig& opt = configs[0];
  without_rope(opt, PositionKind::learned);
  opt.norm = NormKind::layer;
  opt.gated = false;
  opt.activation = Activation::relu;
  opt.qkv_bias = opt.o_bias = opt.mlp_bias = opt.tied_head = true;
  configs[1] = opt;
  configs[1].post_norm = true;
  configs[1].final_norm = false;
  configs[1].embedding_width = 40;
  ModelConfig& falcon = configs[2];
  falcon.norm = NormKind::layer;
  falcon.parallel = falcon.shared_norm = true;
  falcon.gated = false;
  falcon.activation = Activation::gelu;
  falcon.kv_heads = 1;
  ModelConfig& falcon40 = configs[3];
  falcon40 = falcon;
  falcon40.shared_norm = false;
  falcon40.kv_heads = 3;
  falcon40.window = 9;
  falcon40.embedding_width = 56;  // with a final norm
  ModelConfig& bloom = configs[4];
  without_rope(bloom, PositionKind::alibi);
  bloom.norm = NormKind::layer;
  bloom.embedding_norm = true;
  bloom.gated = false;
  bloom.activation = Activation::gelu_tanh;
  bloom.kv_heads = 6;
  ModelConfig& mixtral = configs[5];
  mixtral.experts = 5;
  mixtral.experts_used = 2;
  mixtral.window = 16;
  return configs;
}

}  // namespace oq::test
