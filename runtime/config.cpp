#include "runtime/config.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <type_traits>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace oq {
namespace {

// How metadata spells the values of each enumeration.
constexpr std::pair<Activation, std::string_view> kActivations[] = {
    {Activation::silu, "silu"},
    {Activation::gelu, "gelu"},
    {Activation::gelu_tanh, "gelu_tanh"},
    {Activation::relu, "relu"}};
constexpr std::pair<NormKind, std::string_view> kNorms[] = {{NormKind::rms, "rms"},
                                                            {NormKind::layer, "layer"}};
constexpr std::pair<PositionKind, std::string_view> kPositions[] = {
    {PositionKind::rope, "rope"},
    {PositionKind::learned, "learned"},
    {PositionKind::alibi, "alibi"}};

constexpr std::span<const std::pair<Activation, std::string_view>> names(Activation) {
  return kActivations;
}
constexpr std::span<const std::pair<NormKind, std::string_view>> names(NormKind) { return kNorms; }
constexpr std::span<const std::pair<PositionKind, std::string_view>> names(PositionKind) {
  return kPositions;
}

template <class Enum>
std::string spell(Enum value) {
  for (const auto& [known, name] : names(value)) {
    if (known == value) return std::string(name);
  }
  return "?";
}

template <class Enum>
Enum parse(const std::string& key, const std::string& text) {
  std::vector<std::string_view> all;
  for (const auto& [value, name] : names(Enum())) {
    if (name == text) return value;
    all.push_back(name);
  }
  throw Error({.what = "model config has an unknown value",
               .where = key,
               .expected = fmt::format("{}", fmt::join(all, ", ")),
               .found = "'" + text + "'",
               .hint = "a newer OQ may know it; or convert the checkpoint again"});
}

constexpr int64_t kMaxWidth = 1 << 24;
constexpr int64_t kMaxMlps = 1 << 17;  ///< bounds the list of tensors that a config calls for

void require(bool ok, const char* what, std::string expected, std::string found) {
  if (ok) return;
  throw Error({.what = what,
               .where = "model config",
               .expected = std::move(expected),
               .found = std::move(found),
               .hint = "convert the checkpoint again"});
}

/// Every field with its name, and an integer with its range: one list for reading and writing.
template <class Config, class Field>
void visit_fields(Config& c, Field field) {
  field("family", c.family);
  field("vocab", c.vocab, 1, kMaxWidth);
  field("hidden", c.hidden, 1, kMaxWidth);
  field("blocks", c.blocks, 1, 4096);
  field("heads", c.heads, 1, 65536);
  field("kv_heads", c.kv_heads, 1, 65536);
  field("head_dim", c.head_dim, 1, 4096);
  field("mlp", c.mlp, 1, kMaxWidth);
  field("context", c.context, 1, 1 << 30);
  field("norm", c.norm);
  field("norm_eps", c.norm_eps);
  field("post_norm", c.post_norm);
  field("final_norm", c.final_norm);
  field("embedding_norm", c.embedding_norm);
  field("parallel", c.parallel);
  field("shared_norm", c.shared_norm);
  field("embedding_width", c.embedding_width, 0, kMaxWidth);
  field("positions", c.positions);
  field("rope_dim", c.rope_dim, 0, 4096);
  field("rope_attention_factor", c.rope_attention_factor);
  field("window", c.window, 0, 1 << 30);
  field("activation", c.activation);
  field("gated", c.gated);
  field("experts", c.experts, 0, 65536);
  field("experts_used", c.experts_used, 0, 65536);
  field("qkv_bias", c.qkv_bias);
  field("o_bias", c.o_bias);
  field("mlp_bias", c.mlp_bias);
  field("tied_head", c.tied_head);
}

std::string key_of(const char* field) { return std::string("model.") + field; }

/// Sizes and numbers must be there; what is absent otherwise keeps its default, so that files
/// written before a field existed still open.
struct FieldReader {
  const Metadata& m;

  void operator()(const char* name, int64_t& value, int64_t low, int64_t high) const {
    const std::string key = key_of(name);
    if (low > 0 || m.contains(key)) value = m.get_int(key, low, high);
  }
  void operator()(const char* name, double& value) const { value = m.get<double>(key_of(name)); }
  void operator()(const char* name, bool& value) const { value = m.get_or(key_of(name), value); }
  void operator()(const char* name, std::string& value) const {
    value = m.get<std::string>(key_of(name));
  }
  template <class Enum>
  void operator()(const char* name, Enum& value) const {
    const std::string key = key_of(name);
    if (m.contains(key)) value = parse<Enum>(key, m.get<std::string>(key));
  }
};

}  // namespace

void ModelConfig::store(Metadata& m) const {
  visit_fields(*this, [&](const char* name, const auto& value, auto... /*range*/) {
    if constexpr (std::is_enum_v<std::decay_t<decltype(value)>>) {
      m.set(key_of(name), spell(value));
    } else {
      m.set(key_of(name), value);
    }
  });
}

ModelConfig ModelConfig::load(const Metadata& m) {
  ModelConfig c;
  visit_fields(c, FieldReader{m});
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
  require((rope_dim > 0) == (positions == PositionKind::rope),
          "rotated dimensions disagree with the kind of positions",
          positions == PositionKind::rope ? "rope_dim above 0" : "rope_dim 0",
          std::to_string(rope_dim));
  require(std::isfinite(norm_eps) && norm_eps >= 0, "norm_eps is not usable",
          "a finite number from 0", fmt::format("{}", norm_eps));
  require(std::isfinite(rope_attention_factor), "rope_attention_factor is not usable",
          "a finite number", fmt::format("{}", rope_attention_factor));
  require(!shared_norm || parallel, "only parallel attention and MLP can share a norm", "parallel",
          "sequential");
  require(!parallel || (!post_norm && experts == 0),
          "parallel attention and MLP go with neither post_norm nor experts", "neither",
          fmt::format("post_norm {}, {} experts", post_norm, experts));
  require(experts == 0 ? experts_used == 0 : experts_used >= 1 && experts_used <= experts,
          "number of experts used is not possible", fmt::format("1..{}", experts),
          std::to_string(experts_used));
  require(blocks * std::max<int64_t>(1, experts) <= kMaxMlps, "too many MLPs",
          fmt::format("at most {}", kMaxMlps), fmt::format("{} x {}", blocks, experts));
  require(experts == 0 || (gated && !mlp_bias), "experts must be gated MLPs without bias",
          "gated, no bias", fmt::format("gated {}, mlp_bias {}", gated, mlp_bias));
}

namespace {

/// Writes down tensors in the order in which they are asked for.
class SpecList {
 public:
  explicit SpecList(const ModelConfig& config) : c_(config) {}

  void add(std::string name, Role role, int64_t rows, int64_t cols) {
    specs.push_back({std::move(name), role, rows, cols});
  }
  void norm(const std::string& name) {
    add(name, Role::f32, 1, c_.hidden);
    if (c_.norm == NormKind::layer) add(name + ".bias", Role::f32, 1, c_.hidden);
  }
  void linear(const std::string& name, int64_t out, int64_t in, bool bias) {
    add(name, Role::linear, out, in);
    if (bias) add(name + ".bias", Role::f32, 1, out);
  }
  void mlp(const std::string& prefix) {
    if (c_.gated) linear(prefix + "gate", c_.mlp, c_.hidden, c_.mlp_bias);
    linear(prefix + "up", c_.mlp, c_.hidden, c_.mlp_bias);
    linear(prefix + "down", c_.hidden, c_.mlp, c_.mlp_bias);
  }
  void block(const std::string& prefix) {
    norm(prefix + "attn_norm");
    linear(prefix + "q", c_.q_width(), c_.hidden, c_.qkv_bias);
    linear(prefix + "k", c_.kv_width(), c_.hidden, c_.qkv_bias);
    linear(prefix + "v", c_.kv_width(), c_.hidden, c_.qkv_bias);
    linear(prefix + "o", c_.hidden, c_.q_width(), c_.o_bias);
    if (!c_.shared_norm) norm(prefix + "mlp_norm");
    if (c_.experts == 0) return mlp(prefix);
    add(prefix + "router", Role::f32, c_.experts, c_.hidden);
    for (int64_t e = 0; e < c_.experts; ++e) mlp(fmt::format("{}experts.{}.", prefix, e));
  }

  std::vector<TensorSpec> specs;

 private:
  const ModelConfig& c_;
};

}  // namespace

std::vector<TensorSpec> tensor_specs(const ModelConfig& c) {
  SpecList list(c);
  list.add("embedding", Role::embedding, c.vocab, c.table_width());
  if (c.projected()) list.add("project_in", Role::dense, c.hidden, c.embedding_width);
  if (c.positions == PositionKind::learned) {
    list.add("positions", Role::dense, c.context, c.hidden);
  }
  if (c.embedding_norm) list.norm("embedding_norm");
  if (c.positions == PositionKind::rope) list.add("rope.inv_freq", Role::f32, 1, c.rope_dim / 2);
  if (c.positions == PositionKind::alibi) list.add("alibi", Role::f32, c.heads, c.context);
  for (int64_t b = 0; b < c.blocks; ++b) list.block(fmt::format("blocks.{}.", b));
  if (c.final_norm) list.norm("final_norm");
  if (c.projected()) list.add("project_out", Role::dense, c.embedding_width, c.hidden);
  if (!c.tied_head) list.add("head", Role::head, c.vocab, c.table_width());
  return std::move(list.specs);
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
    const bool f32 = spec.role == Role::f32;
    const bool packed = info.kind == Kind::packed && spec.role != Role::dense;
    const bool plain = info.kind != Kind::packed && info.kind != Kind::bytes;
    if (f32 ? info.kind != Kind::f32 : !packed && !plain) {
      throw Error({.what = "tensor is of a kind that cannot be used here",
                   .where = where,
                   .expected = f32                        ? "f32"
                               : spec.role == Role::dense ? "f32, f16 or bf16"
                                                          : "f32, f16, bf16 or packed",
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
