#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "format/file.h"
#include "format/metadata.h"

namespace oq {

enum class Activation { silu, gelu, gelu_tanh, relu };

std::string_view to_string(Activation a);
Activation parse_activation(std::string_view name);

/// Everything that makes one decoder differ from another. A family is a set of these values, made
/// by the converter; nothing after the converter asks which family it was.
struct ModelConfig {
  std::string family;  ///< where it came from, for people: "llama", ...
  int64_t vocab = 0;   ///< rows of embedding and head
  int64_t hidden = 0;  ///< width of the residual stream
  int64_t blocks = 0;
  int64_t heads = 0;     ///< query heads
  int64_t kv_heads = 0;  ///< heads of K and V; divides `heads`
  int64_t head_dim = 0;
  int64_t mlp = 0;         ///< width between up and down
  int64_t context = 0;     ///< positions the model was made for
  double norm_eps = 1e-5;  ///< RMSNorm
  Activation activation = Activation::silu;
  int64_t rope_dim = 0;                ///< leading dimensions of a head that are rotated; even
  double rope_attention_factor = 1.0;  ///< multiplies cos and sin (YaRN); 1 elsewhere
  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool tied_head = false;  ///< the head is the embedding table

  int64_t q_width() const { return heads * head_dim; }
  int64_t kv_width() const { return kv_heads * head_dim; }

  void store(Metadata& metadata) const;
  /// Throws oq::Error when a value is missing, out of range, or disagrees with another.
  static ModelConfig load(const Metadata& metadata);
  /// The same of a file, which the error then names.
  static ModelConfig load(const File& file);
  void check() const;

  friend bool operator==(const ModelConfig&, const ModelConfig&) = default;
};

/// What a tensor of a model is for; it decides what may be done with it (quantize a linear, keep
/// a vector in f32, give embedding and head their own bits).
enum class Role { embedding, linear, vector, head };

struct TensorSpec {
  std::string name;
  Role role;
  int64_t rows, cols;
};

/// The tensors that a config calls for, in the order in which a token visits them. Blocks are
/// named "blocks.N.q": attn_norm, q, k, v, o, mlp_norm, gate, up, down, and "X.bias" after X.
/// Around them: "embedding", "rope.inv_freq" (rope_dim / 2 values), "final_norm", and "head"
/// unless it is tied.
std::vector<TensorSpec> tensor_specs(const ModelConfig& config);

/// Throws oq::Error when a tensor is missing or its shape is not the config's.
void check_tensors(const File& file, const ModelConfig& config);

/// What the blocks' linears take in a file: all stored bytes of codes, scales, zero points, weak
/// columns and indices, against the weights they stand for.
struct LinearBytes {
  uint64_t bytes = 0;
  uint64_t weights = 0;
  double bits_per_weight() const { return double(bytes) * 8 / double(weights); }
};
LinearBytes linear_bytes(const File& file, const ModelConfig& config);

}  // namespace oq
