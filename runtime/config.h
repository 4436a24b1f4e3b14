#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "format/file.h"
#include "format/metadata.h"
#include "kernels/activation.h"

namespace oq {

enum class NormKind { rms, layer };                ///< LayerNorm has a bias
enum class PositionKind { rope, learned, alibi };  ///< how a model knows where a token stands

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
  int64_t mlp = 0;      ///< width between up and down
  int64_t context = 0;  ///< positions the model was made for

  NormKind norm = NormKind::rms;
  double norm_eps = 1e-5;
  bool post_norm = false;       ///< norms follow the residual additions instead of the residual
  bool final_norm = true;       ///< a norm before the head
  bool embedding_norm = false;  ///< a norm after the embedding
  bool parallel = false;        ///< attention and MLP read the same x, and both are added to it
  bool shared_norm = false;     ///< parallel only: one norm for both
  int64_t embedding_width = 0;  ///< of embedding and head, projected in and out; 0: hidden

  PositionKind positions = PositionKind::rope;
  int64_t rope_dim = 0;                ///< leading dimensions of a head that are rotated; even
  double rope_attention_factor = 1.0;  ///< multiplies cos and sin (YaRN); 1 elsewhere
  int64_t window = 0;                  ///< positions that a token sees, its own included; 0: all

  Activation activation = Activation::silu;
  bool gated = true;         ///< activation(gate(x)) * up(x); else activation(up(x))
  int64_t experts = 0;       ///< MLPs that a router chooses from; 0: one MLP and no router
  int64_t experts_used = 0;  ///< chosen per token, softmax over the chosen

  bool qkv_bias = false, o_bias = false, mlp_bias = false;
  bool tied_head = false;  ///< the head is the embedding table

  int64_t q_width() const { return heads * head_dim; }
  int64_t kv_width() const { return kv_heads * head_dim; }
  int64_t table_width() const { return projected() ? embedding_width : hidden; }
  bool projected() const { return embedding_width > 0; }

  void store(Metadata& metadata) const;
  /// Throws oq::Error when a value is missing, out of range, or disagrees with another.
  static ModelConfig load(const Metadata& metadata);
  /// The same of a file, which the error then names.
  static ModelConfig load(const File& file);
  void check() const;

  friend bool operator==(const ModelConfig&, const ModelConfig&) = default;
};

/// What a tensor of a model is for; it decides what may be done with it: a linear of a block may
/// be quantized, embedding and head have bits of their own, `dense` stays in the file's float
/// type, and `f32` (norms, biases, frequencies, routers) in f32.
enum class Role { embedding, linear, dense, f32, head };

struct TensorSpec {
  std::string name;
  Role role;
  int64_t rows, cols;
};

/// The tensors that a config calls for, in the order in which a token visits them. "X.bias" follows
/// X where there is one.
///   around the blocks: embedding, project_in, positions [context, hidden], embedding_norm,
///     rope.inv_freq [rope_dim / 2] or alibi [heads, context]; final_norm, project_out, head
///   "blocks.N.": attn_norm, q, k, v, o, mlp_norm, then gate, up, down; or router and
///     "experts.E.gate", "experts.E.up", "experts.E.down"
/// alibi[h][t] is what is added to head h's score, already divided by sqrt(head_dim) where the
/// model divides it, of a key at position t.
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
