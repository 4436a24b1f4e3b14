#include "bench/shapes.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace oq {
namespace {

struct Sizes {
  int64_t vocab, hidden, blocks, heads, kv_heads, mlp, context;
};

ModelConfig base(std::string family, const Sizes& s) {
  ModelConfig c;
  c.family = std::move(family);
  c.vocab = s.vocab;
  c.hidden = s.hidden;
  c.blocks = s.blocks;
  c.heads = s.heads;
  c.kv_heads = s.kv_heads;
  c.head_dim = s.hidden / s.heads;
  c.mlp = s.mlp;
  c.context = s.context;
  c.positions = PositionKind::rope;
  c.rope_dim = c.head_dim;
  return c;
}

/// RMSNorm, RoPE, gated SiLU, no biases  [Touvron et al. 2023]
ModelConfig llama(const Sizes& sizes, double eps, bool tied = false) {
  ModelConfig c = base("llama", sizes);
  c.norm_eps = eps;
  c.tied_head = tied;
  return c;
}

/// LLaMA's block with a router over 8 MLPs, 2 of them chosen  [Jiang et al. 2024]
ModelConfig mixtral(int64_t blocks) {
  ModelConfig c = base("mixtral", {32000, 4096, blocks, 32, 8, 14336, 32768});
  c.experts = 8;
  c.experts_used = 2;
  return c;
}

/// What OPT, Falcon and BLOOM share: LayerNorm, a plain MLP, the embedding as head.
ModelConfig layer_norm(std::string family, const Sizes& sizes, Activation activation, bool biases) {
  ModelConfig c = base(std::move(family), sizes);
  c.norm = NormKind::layer;
  c.activation = activation;
  c.gated = false;
  c.qkv_bias = c.o_bias = c.mlp_bias = biases;
  c.tied_head = true;
  return c;
}

void without_rope(ModelConfig& c, PositionKind positions) {
  c.positions = positions;
  c.rope_dim = 0;
}

/// Pre-norm OPT; its MLP is 4 times the width  [Zhang et al. 2022]
ModelConfig opt(int64_t hidden, int64_t blocks, int64_t heads) {
  ModelConfig c = layer_norm("opt", {50272, hidden, blocks, heads, heads, 4 * hidden, 2048},
                             Activation::relu, true);
  without_rope(c, PositionKind::learned);
  return c;
}

/// Attention beside the MLP; 7b has one norm for both, the larger ones have two
/// [Almazrouei et al. 2023]. The 7b checkpoint stores the embedding twice, as its head too.
ModelConfig falcon(int64_t hidden, int64_t blocks, int64_t heads, int64_t kv_heads,
                   bool shared_norm) {
  ModelConfig c = layer_norm("falcon", {65024, hidden, blocks, heads, kv_heads, 4 * hidden, 2048},
                             Activation::gelu, false);
  c.parallel = true;
  c.shared_norm = shared_norm;
  return c;
}

/// Falcon's architecture with ALiBi, biases and blocks in sequence  [Penedo et al. 2023]
ModelConfig falcon_rw() {
  ModelConfig c =
      layer_norm("falcon", {50304, 2048, 24, 32, 32, 8192, 2048}, Activation::gelu, true);
  without_rope(c, PositionKind::alibi);
  return c;
}

/// ALiBi and a norm behind the embedding  [BigScience Workshop 2022]
ModelConfig bloom() {
  ModelConfig c =
      layer_norm("bloom", {250880, 1536, 24, 16, 16, 6144, 2048}, Activation::gelu_tanh, true);
  without_rope(c, PositionKind::alibi);
  c.embedding_norm = true;
  return c;
}

std::vector<Shape> make_shapes() {
  return {
      {"smollm2-135m", llama({49152, 576, 30, 9, 3, 1536, 8192}, 1e-5, true), 100000},
      {"llama-1.1b", llama({32000, 2048, 22, 32, 4, 5632, 2048}, 1e-5)},  // TinyLlama
      {"llama-7b", llama({32000, 4096, 32, 32, 32, 11008, 2048}, 1e-6)},
      {"llama-13b", llama({32000, 5120, 40, 40, 40, 13824, 2048}, 1e-6)},
      {"llama-30b", llama({32000, 6656, 60, 52, 52, 17920, 2048}, 1e-6)},
      {"opt-125m", opt(768, 12, 12)},
      {"opt-1.3b", opt(2048, 24, 32)},
      {"opt-6.7b", opt(4096, 32, 32)},
      {"falcon-rw-1b", falcon_rw(), 10000, true},
      {"falcon-7b", falcon(4544, 32, 71, 1, true)},
      {"falcon-180b", falcon(14848, 80, 232, 8, false)},
      {"mixtral-8x7b", mixtral(32), 1e6},
      // Six of Mixtral's 32 blocks and nothing smaller in them, so that a block costs what it costs
      // in the whole model: 9.0 G weights, 4.8 GB at w4a16g128.
      {"mixtral-mini", mixtral(6), 1e6},
      {"bloom-1b1", bloom()},
  };
}

}  // namespace

std::span<const Shape> shapes() {
  static const std::vector<Shape> table = make_shapes();
  return table;
}

const Shape* find_shape(std::string_view name) {
  const auto all = shapes();
  const auto it =
      std::find_if(all.begin(), all.end(), [&](const Shape& s) { return s.name == name; });
  return it == all.end() ? nullptr : &*it;
}

std::string shape_names() {
  std::string names;
  for (const Shape& s : shapes()) names += (names.empty() ? "" : ", ") + std::string(s.name);
  return names;
}

int64_t parameters(const ModelConfig& config) {
  int64_t sum = 0;
  for (const TensorSpec& spec : tensor_specs(config)) {
    const bool computed = spec.name == "rope.inv_freq" || spec.name == "alibi";
    if (!computed) sum += spec.rows * spec.cols;
  }
  return sum;
}

}  // namespace oq
