#include "tools/calibrate/learn/transformation.h"

#include <algorithm>
#include <numeric>

#include "tools/calibrate/learn/vector_math.h"

namespace oq::calibrate {
namespace {

using Use = Pair::Use;
using Where = Pair::Use::Where;

constexpr int64_t kSlab = 64;  ///< rows that one partial sum takes

bool feeds_mlp(const std::string& linear) {
  return linear.ends_with("up") || linear.ends_with("gate");
}

const NormWeights& norm_of(const BlockWeights& w, const std::string& name) {
  return name == "attn_norm" ? w.attn_norm : w.mlp_norm;
}

}  // namespace

Transformation::Transformation(const ModelConfig& config, const BlockWeights& weights,
                               const Kinds& kinds)
    : c_(config) {
  add_pairs(weights, kinds);
  for (const Pair& p : pairs_) {
    gradients_.push_back({std::vector<float>(p.scale.size()), std::vector<float>(p.shift.size())});
  }
  for (const auto& [name, l] : weights.linears) {
    sides_[name] = {.columns = std::vector<float>(size_t(l.in())),
                    .rows = std::vector<float>(size_t(l.out())),
                    .in = std::vector<float>(size_t(l.in())),
                    .out = std::vector<float>(size_t(l.out()))};
  }
}

Pair Transformation::make(std::string name, int64_t channels) const {
  return {.name = std::move(name), .uses = {}, .scale = std::vector<float>(size_t(channels), 1.0f)};
}

/// A query head's dimensions, by those of its KV head.
std::vector<uint32_t> Transformation::query_channels(const std::vector<uint32_t>& of_kv) const {
  std::vector<uint32_t> channels;
  for (int64_t h = 0; h < c_.heads; ++h) {
    const auto from = of_kv.begin() + h / (c_.heads / c_.kv_heads) * c_.head_dim;
    channels.insert(channels.end(), from, from + c_.head_dim);
  }
  return channels;
}

/// Rows of k, by channel: RoPE rotates dimensions i and i + rope_dim / 2 into each other.
std::vector<uint32_t> Transformation::rope_channels(bool free_rope) const {
  std::vector<uint32_t> channels(size_t(c_.kv_width()));
  std::iota(channels.begin(), channels.end(), 0u);
  const int64_t half = c_.positions == PositionKind::rope && !free_rope ? c_.rope_dim / 2 : 0;
  for (int64_t kv = 0; kv < c_.kv_heads; ++kv) {
    for (int64_t i = 0; i < half; ++i) {
      const auto at = size_t(kv * c_.head_dim + i);
      channels[at + size_t(half)] = channels[at];
    }
  }
  return channels;
}

void Transformation::add_pairs(const BlockWeights& weights, const Kinds& kinds) {
  const auto shift = [&](Pair& p, bool fits) {
    if (kinds.shifts && fits) p.shift.resize(p.scale.size());
  };
  const bool layer = c_.norm == NormKind::layer;
  Pair qkv = make("qkv", c_.hidden), mlp = make("mlp", c_.hidden);
  qkv.uses.push_back({Where::norm, "attn_norm", true});
  (c_.shared_norm ? qkv : mlp).uses.push_back({Where::norm, "mlp_norm", true});
  for (const char* name : {"q", "k", "v"}) qkv.uses.push_back({Where::columns, name, false});
  for (const auto& [name, l] : weights.linears) {
    if (feeds_mlp(name)) (c_.shared_norm ? qkv : mlp).uses.push_back({Where::columns, name, false});
  }
  if (!weights.router.empty()) mlp.uses.push_back({Where::router, "router", false});
  shift(qkv, layer && c_.qkv_bias && (!c_.shared_norm || c_.mlp_bias));
  shift(mlp, layer && c_.mlp_bias && weights.router.empty());
  if (!c_.post_norm) pairs_.push_back(qkv);
  if (!c_.post_norm && !c_.shared_norm) pairs_.push_back(mlp);

  std::vector<uint32_t> of_kv(size_t(c_.kv_width()));
  std::iota(of_kv.begin(), of_kv.end(), 0u);
  Pair o = make("o", c_.kv_width()), qk = make("qk", c_.kv_width());
  o.uses = {{Where::rows, "v", true}, {Where::columns, "o", false, query_channels(of_kv)}};
  shift(o, c_.qkv_bias && c_.o_bias);
  pairs_.push_back(std::move(o));
  const std::vector<uint32_t> channels = rope_channels(kinds.free_rope);
  qk.uses = {{Where::rows, "q", true, query_channels(channels)},
             {Where::rows, "k", false, channels}};
  pairs_.push_back(std::move(qk));

  if (!kinds.down || !(c_.gated || c_.activation == Activation::relu)) return;
  for (const auto& [name, l] : weights.linears) {
    if (!name.ends_with("down")) continue;
    Pair down = make(name, c_.mlp);
    down.uses = {{Where::rows, name.substr(0, name.size() - 4) + "up", true},
                 {Where::columns, name, false}};
    pairs_.push_back(std::move(down));
  }
}

void Transformation::set_sides() {
  for (auto& [name, side] : sides_) {
    std::fill(side.columns.begin(), side.columns.end(), 1.0f);
    std::fill(side.rows.begin(), side.rows.end(), 1.0f);
    side.shifts_in = false;
    std::fill(side.out.begin(), side.out.end(), 0.0f);
  }
  for (const Pair& p : pairs_) {
    for (const Use& use : p.uses) {
      if (use.where != Where::columns && use.where != Where::rows) continue;
      Side& side = sides_.at(use.tensor);
      const bool columns = use.where == Where::columns;
      std::vector<float>& factors = columns ? side.columns : side.rows;
      std::vector<float>& shifts = columns ? side.in : side.out;
      for (size_t i = 0; i < factors.size(); ++i) {
        const uint32_t channel = use.channel_of(i);
        factors[i] = use.divides ? factors[i] / p.scale[channel] : factors[i] * p.scale[channel];
        if (!p.shift.empty()) shifts[i] = p.shift[channel];
      }
      if (columns && !p.shift.empty()) side.shifts_in = true;
    }
  }
}

void Transformation::fold_norm(const std::string& name, const NormWeights& from,
                               NormWeights& to) const {
  to = from;
  for (const Pair& p : pairs_) {
    for (const Use& use : p.uses) {
      if (use.tensor != name) continue;
      for (size_t i = 0; i < p.scale.size(); ++i) {
        to.weight[i] = from.weight[i] / p.scale[i];
        if (from.bias.empty()) continue;
        to.bias[i] = (from.bias[i] - (p.shift.empty() ? 0.0f : p.shift[i])) / p.scale[i];
      }
    }
  }
}

void Transformation::fold(ThreadPool& pool, const BlockWeights& original, BlockWeights& folded) {
  set_sides();
  fold_norm("attn_norm", original.attn_norm, folded.attn_norm);
  fold_norm("mlp_norm", original.mlp_norm, folded.mlp_norm);
  for (const auto& entry : original.linears) {
    const LinearWeights& from = entry.second;
    LinearWeights& to = folded.linears.at(entry.first);
    const Side& side = sides_.at(entry.first);
    const int64_t n = from.in();
    pool.parallel_for(from.out(), 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) {
        const float *w = from.weight.row(r).data(), *columns = side.columns.data();
        float* out = to.weight.row(r).data();
        const float factor = side.rows[size_t(r)];
        for (int64_t k = 0; k < n; ++k) out[k] = w[k] * factor * columns[k];
        if (from.bias.empty()) continue;
        const float* in = side.in.data();
        const float moved =
            side.shifts_in ? lane_sum(n, [&](int64_t k) { return w[k] * in[k]; }) : 0;
        to.bias[size_t(r)] = (from.bias[size_t(r)] + moved - side.out[size_t(r)]) * factor;
      }
    });
  }
  folded.router = original.router;
  for (const Pair& p : pairs_) {
    for (const Use& use : p.uses) {
      if (use.where != Where::router) continue;
      for (size_t i = 0; i < folded.router.size(); ++i) {
        folded.router[i] *= p.scale[i % p.scale.size()];
      }
    }
  }
}

/// Sums of w g by column and by row. Columns in partial sums of kSlab rows, in order.
void Transformation::sum_products(ThreadPool& pool, const Matrix& w, const Matrix& g,
                                  std::vector<float>& columns, std::vector<float>& rows) {
  const int64_t n = w.cols(), slabs = (w.rows() + kSlab - 1) / kSlab;
  partial_.assign(size_t(slabs * n), 0);
  rows.resize(size_t(w.rows()));
  pool.parallel_for(slabs, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin * kSlab; r < std::min(w.rows(), end * kSlab); ++r) {
      const float *a = w.row(r).data(), *b = g.row(r).data();
      float* to = partial_.data() + r / kSlab * n;
      for (int64_t k = 0; k < n; ++k) to[k] += a[k] * b[k];
      rows[size_t(r)] = lane_sum(n, [&](int64_t k) { return a[k] * b[k]; });
    }
  });
  columns.assign(size_t(n), 0);
  for (int64_t s = 0; s < slabs; ++s) {
    for (int64_t k = 0; k < n; ++k) columns[size_t(k)] += partial_[size_t(s * n + k)];
  }
}

void Transformation::linear_backward(ThreadPool& pool, const std::string& name,
                                     const LinearWeights& folded, const LinearWeights& gradient) {
  const Side& side = sides_.at(name);
  sum_products(pool, folded.weight, gradient.weight, column_sums_, row_sums_);
  for (size_t r = 0; r < gradient.bias.size(); ++r) {
    row_sums_[r] += folded.bias[r] * gradient.bias[r];
  }
  for (size_t p = 0; p < pairs_.size(); ++p) {
    const Pair& pair = pairs_[p];
    Gradient& g = gradients_[p];
    for (const Use& use : pair.uses) {
      if (use.tensor != name) continue;
      const bool columns = use.where == Where::columns;
      const std::vector<float>& sums = columns ? column_sums_ : row_sums_;
      for (size_t i = 0; i < sums.size(); ++i) {
        const uint32_t channel = use.channel_of(i);
        g.scale[channel] += (use.divides ? -sums[i] : sums[i]) / pair.scale[channel];
      }
      if (pair.shift.empty()) continue;
      for (size_t r = 0; r < gradient.bias.size(); ++r) {
        if (!columns) {
          g.shift[use.channel_of(r)] -= side.rows[r] * gradient.bias[r];
          continue;
        }
        const auto row = folded.weight.row(int64_t(r));
        for (size_t k = 0; k < row.size(); ++k) {
          g.shift[use.channel_of(k)] += row[k] / side.columns[k] * gradient.bias[r];
        }
      }
    }
  }
}

void Transformation::norm_backward(size_t p, const NormWeights& folded,
                                   const NormWeights& gradient) {
  const Pair& pair = pairs_[p];
  Gradient& g = gradients_[p];
  for (size_t i = 0; i < pair.scale.size(); ++i) {
    float sum = folded.weight[i] * gradient.weight[i];
    if (!folded.bias.empty()) sum += folded.bias[i] * gradient.bias[i];
    g.scale[i] -= sum / pair.scale[i];
    if (!pair.shift.empty()) g.shift[i] -= gradient.bias[i] / pair.scale[i];
  }
}

void Transformation::backward(ThreadPool& pool, const BlockWeights& folded,
                              const BlockWeights& gradients) {
  for (Gradient& g : gradients_) {
    std::fill(g.scale.begin(), g.scale.end(), 0.0f);
    std::fill(g.shift.begin(), g.shift.end(), 0.0f);
  }
  for (const auto& [name, l] : folded.linears) {
    linear_backward(pool, name, l, gradients.linears.at(name));
  }
  for (size_t p = 0; p < pairs_.size(); ++p) {
    for (const Use& use : pairs_[p].uses) {
      if (use.where == Where::norm) {
        norm_backward(p, norm_of(folded, use.tensor), norm_of(gradients, use.tensor));
      } else if (use.where == Where::router) {
        const size_t n = pairs_[p].scale.size();
        for (size_t i = 0; i < folded.router.size(); ++i) {
          gradients_[p].scale[i % n] +=
              folded.router[i] * gradients.router[i] / pairs_[p].scale[i % n];
        }
      }
    }
  }
}

}  // namespace oq::calibrate
