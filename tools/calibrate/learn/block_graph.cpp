#include "tools/calibrate/learn/block_graph.h"

#include <algorithm>

namespace oq::calibrate {
namespace {

std::vector<float> tensor_or_none(const File& file, const std::string& name, bool there) {
  return there ? read_tensor(file, name) : std::vector<float>();
}

/// out = a + b.
void add(const std::vector<float>& b, const float* a, float* out) {
  for (size_t i = 0; i < b.size(); ++i) out[i] = a[i] + b[i];
}

void add_to(const std::vector<float>& from, float* to) { add(from, to, to); }

NormWeights zeros_like(const NormWeights& w) {
  return {std::vector<float>(w.weight.size()), std::vector<float>(w.bias.size())};
}

}  // namespace

BlockGraph::BlockGraph(const File& file, const ModelConfig& config, int64_t window,
                       ThreadPool& pool)
    : config_(config),
      pool_(pool),
      context_{.config = config_, .pool = pool, .kernels = cpu::best_kernels()},
      alibi_(tensor_or_none(file, "alibi", config.positions == PositionKind::alibi)),
      rope_(tensor_or_none(file, "rope.inv_freq", config.positions == PositionKind::rope),
            config.rope_attention_factor, window),
      attention_(config_, alibi_) {}

BlockWeights BlockGraph::of_shape(const BlockWeights& w) {
  BlockWeights g;
  g.attn_norm = zeros_like(w.attn_norm);
  g.mlp_norm = zeros_like(w.mlp_norm);
  g.router.resize(w.router.size());
  for (const auto& [name, l] : w.linears) {
    g.linears[name].weight = Matrix(l.out(), l.in());
    g.linears[name].bias.resize(l.bias.size());
  }
  return g;
}

const float* BlockGraph::norm(const NormWeights& w, const float* x, std::vector<float>& out) {
  out.resize(size_t(tokens_ * config_.hidden));
  normalize(pool_, w, config_.norm_eps, x, tokens_, out.data());
  return out.data();
}

void BlockGraph::norm_backward(const NormWeights& w, const float* x, const float* dy,
                               NormWeights& gradient, float* dx) {
  const NormBackward norm{.rms = w.bias.empty(),
                          .eps = float(config_.norm_eps),
                          .n = config_.hidden,
                          .weight = w.weight.data(),
                          .d_weight = gradient.weight.data(),
                          .d_bias = w.bias.empty() ? nullptr : gradient.bias.data()};
  norm.run(pool_, x, dy, tokens_, dx);
}

void BlockGraph::quantize_heads() {
  const ModelConfig& c = config_;
  quantized_.resize(c, tokens_);
  const auto run = [&](const ActivationQuantizer& q, const std::vector<float>& from, int64_t range,
                       std::vector<float>& to) {
    if (q.active()) {
      q.forward(pool_, from.data(), int64_t(from.size()) / range, range, range, to.data());
    } else {
      to = from;
    }
  };
  run(query_, heads_.q, q_range_, quantized_.q);
  run(cache_, heads_.k, kv_range_, quantized_.k);
  run(cache_, heads_.v, kv_range_, quantized_.v);
}

void BlockGraph::attend(const BlockWeights& w, const float* x, float* out) {
  const ModelConfig& c = config_;
  const bool per_tensor = context_.per_tensor;
  heads_.resize(c, tokens_);
  q_.forward(pool_, w.linears.at("q"), per_tensor, x, tokens_, heads_.q.data(), c.q_width());
  k_.forward(pool_, w.linears.at("k"), per_tensor, x, tokens_, heads_.k.data(), c.kv_width(), &q_);
  v_.forward(pool_, w.linears.at("v"), per_tensor, x, tokens_, heads_.v.data(), c.kv_width(), &q_);
  rope_.rotate(pool_, heads_.q.data(), tokens_, c.heads, c.head_dim, c.q_width());
  rope_.rotate(pool_, heads_.k.data(), tokens_, c.kv_heads, c.head_dim, c.kv_width());
  const bool quantizes = query_.active() || cache_.active();
  if (quantizes) quantize_heads();
  attended_.resize(size_t(tokens_ * c.q_width()));
  attention_.forward(pool_, quantizes ? quantized_ : heads_, tokens_, attended_.data(), map_,
                     sight_);
  o_.forward(pool_, w.linears.at("o"), per_tensor, attended_.data(), tokens_, out, c.hidden);
}

void BlockGraph::attend_backward(const BlockWeights& w, const float* d_out, BlockWeights& gradients,
                                 float* dx) {
  const ModelConfig& c = config_;
  const auto linear = [&](const char* name, LinearGraph& graph, const float* dy, int64_t stride,
                          float* d) {
    graph.backward(pool_, w.linears.at(name), dy, stride, gradients.linears.at(name), d);
  };
  d_attended_.assign(attended_.size(), 0);
  linear("o", o_, d_out, c.hidden, d_attended_.data());
  const bool quantizes = query_.active() || cache_.active();
  attention_.backward(pool_, quantizes ? quantized_ : heads_, tokens_, attended_.data(),
                      d_attended_.data(), d_map_, d_heads_);
  const auto through = [&](const ActivationQuantizer& q, const std::vector<float>& x, int64_t range,
                           std::vector<float>& d) {
    if (!q.active()) return;
    q.backward(pool_, x.data(), int64_t(x.size()) / range, range, range, d.data());
  };
  through(query_, heads_.q, q_range_, d_heads_.q);
  through(cache_, heads_.k, kv_range_, d_heads_.k);
  through(cache_, heads_.v, kv_range_, d_heads_.v);
  rope_.rotate_back(pool_, d_heads_.q.data(), tokens_, c.heads, c.head_dim, c.q_width());
  rope_.rotate_back(pool_, d_heads_.k.data(), tokens_, c.kv_heads, c.head_dim, c.kv_width());
  linear("q", q_, d_heads_.q.data(), c.q_width(), dx);
  linear("k", k_, d_heads_.k.data(), c.kv_width(), dx);
  linear("v", v_, d_heads_.v.data(), c.kv_width(), dx);
}

void BlockGraph::mlp(const BlockWeights& w, const float* x, float* out) {
  if (config_.experts > 0) return experts_.forward(context_, w, x, tokens_, out);
  mlp_.forward(context_, w, "", x, tokens_, out);
}

void BlockGraph::mlp_backward(const BlockWeights& w, const float* d_out, BlockWeights& gradients,
                              float* dx) {
  if (config_.experts > 0) return experts_.backward(context_, w, d_out, gradients, dx);
  mlp_.backward(context_, w, "", d_out, gradients, dx);
}

void BlockGraph::forward(const BlockWeights& w, const Scheme& scheme, const float* x,
                         int64_t tokens, float* y, float* map, Sight sight) {
  const ModelConfig& c = config_;
  const auto size = size_t(tokens * c.hidden);
  x_ = x;
  map_ = map;
  tokens_ = tokens;
  sight_ = sight;
  context_.per_tensor = scheme.per_tensor;
  query_ = {.bits = scheme.query_bits};
  cache_ = {.kind = ActivationQuantizer::Kind::cache, .bits = scheme.kv_bits};
  q_range_ = scheme.range_width(c.heads, c.head_dim);
  kv_range_ = scheme.range_width(c.kv_heads, c.head_dim);
  for (auto* v : {&attention_out_, &mlp_out_, &between_, &sum_}) v->resize(size);
  attend(w, c.post_norm ? x : norm(w.attn_norm, x, normed_), attention_out_.data());
  if (c.post_norm) {
    add(attention_out_, x, sum_.data());
    norm(w.attn_norm, sum_.data(), between_);
    mlp(w, between_.data(), mlp_out_.data());
    add_to(between_, mlp_out_.data());
    norm(w.mlp_norm, mlp_out_.data(), d_sum_);
    std::copy(d_sum_.begin(), d_sum_.end(), y);
    return;
  }
  add(attention_out_, x, between_.data());
  mlp(w, norm(w.mlp_norm, c.parallel ? x : between_.data(), mlp_normed_), mlp_out_.data());
  add(mlp_out_, between_.data(), y);
}

void BlockGraph::backward_post_norm(const BlockWeights& w, const float* dy, BlockWeights& gradients,
                                    float* dx) {
  d_sum_.assign(sum_.size(), 0);
  norm_backward(w.mlp_norm, mlp_out_.data(), dy, gradients.mlp_norm, d_sum_.data());
  d_between_ = d_sum_;
  mlp_backward(w, d_sum_.data(), gradients, d_between_.data());
  d_sum_.assign(sum_.size(), 0);
  norm_backward(w.attn_norm, sum_.data(), d_between_.data(), gradients.attn_norm, d_sum_.data());
  if (dx != nullptr) std::copy(d_sum_.begin(), d_sum_.end(), dx);
  attend_backward(w, d_sum_.data(), gradients, dx);
}

void BlockGraph::backward(const BlockWeights& w, const float* dy, BlockWeights& gradients,
                          float* dx, const float* d_map) {
  const ModelConfig& c = config_;
  d_map_ = d_map;
  if (c.post_norm) return backward_post_norm(w, dy, gradients, dx);
  const auto size = size_t(tokens_ * c.hidden);
  const bool through = dx != nullptr || !c.parallel;  // gradients of the MLP's input are wanted
  d_between_.assign(dy, dy + size);
  d_normed_.assign(size, 0);
  mlp_backward(w, dy, gradients, through ? d_normed_.data() : nullptr);
  if (c.parallel) {
    if (dx != nullptr) std::copy_n(dy, size, dx);
    if (dx != nullptr) norm_backward(w.mlp_norm, x_, d_normed_.data(), gradients.mlp_norm, dx);
    d_normed_.assign(size, 0);
    attend_backward(w, dy, gradients, dx == nullptr ? nullptr : d_normed_.data());
  } else {
    norm_backward(w.mlp_norm, between_.data(), d_normed_.data(), gradients.mlp_norm,
                  d_between_.data());
    if (dx != nullptr) std::copy(d_between_.begin(), d_between_.end(), dx);
    d_normed_.assign(size, 0);
    attend_backward(w, d_between_.data(), gradients, dx == nullptr ? nullptr : d_normed_.data());
  }
  if (dx != nullptr) norm_backward(w.attn_norm, x_, d_normed_.data(), gradients.attn_norm, dx);
}

}  // namespace oq::calibrate
