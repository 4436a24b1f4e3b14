#include "tools/calibrate/block.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <cblas.h>
#include <fmt/format.h>

#include "kernels/reference/ops.h"
#include "tools/calibrate/activation_quantizer.h"

namespace oq::calibrate {
namespace {

Plan cache_plan(const ModelConfig& config, int64_t window) {
  Plan plan;
  plan.config = config;
  plan.config.blocks = 1;
  plan.context = window;
  plan.max_rows = window;
  plan.kv_bits = 32;
  return plan;
}

/// y[m][o] = sum_i x[m][i] w[o][i], y rows `stride` apart.
void multiply(const float* x, int64_t rows, int64_t in, const float* w, int64_t out, float* y,
              int64_t stride) {
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, int(rows), int(out), int(in), 1.0f, x,
              int(in), w, int(in), 0.0f, y, int(stride));
}

std::vector<float> product(const std::vector<float>& x, int64_t rows, const std::vector<float>& w,
                           int64_t out) {
  std::vector<float> y(size_t(rows * out));
  multiply(x.data(), rows, int64_t(x.size()) / rows, w.data(), out, y.data(), out);
  return y;
}

void add(const float* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] += from[i];
}

}  // namespace

std::vector<float> read_tensor(const File& file, const std::string& name) {
  const TensorInfo& info = file.tensor(name);
  if (info.kind == Kind::packed) return reference::dequantize(file.packed(info));
  std::vector<float> v(info.elements());
  const std::byte* data = file.data(info).data();
  const auto convert = [&](auto type) {
    const auto* from = reinterpret_cast<const decltype(type)*>(data);
    for (size_t i = 0; i < v.size(); ++i) v[i] = to_float(from[i]);
  };
  switch (info.kind) {
    case Kind::f16:
      convert(f16{});
      break;
    case Kind::bf16:
      convert(bf16{});
      break;
    default:
      convert(0.0f);
  }
  for (size_t i = 0; i < v.size(); ++i) {
    if (std::isfinite(v[i])) continue;
    throw Error({.what = fmt::format("weight {} is not finite", i),
                 .where = file.path().string() + ", tensor '" + name + "'",
                 .hint = "convert the checkpoint again"});
  }
  return v;
}

NormWeights NormWeights::load(const File& file, const ModelConfig& config,
                              const std::string& name) {
  const bool with_bias = config.norm == NormKind::layer;
  return {.weight = read_tensor(file, name),
          .bias = with_bias ? read_tensor(file, name + ".bias") : std::vector<float>()};
}

void normalize(ThreadPool& pool, const NormWeights& norm, double eps, const float* x,
               int64_t tokens, float* out) {
  const cpu::Kernels& kernels = cpu::best_kernels();
  const auto n = int64_t(norm.weight.size());
  pool.parallel_for(tokens, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      if (norm.bias.empty()) {
        kernels.rms_norm(x + t * n, norm.weight.data(), float(eps), n, out + t * n);
      } else {
        kernels.layer_norm(x + t * n, norm.weight.data(), norm.bias.data(), float(eps), n,
                           out + t * n);
      }
    }
  });
}

BlockWeights BlockWeights::load(const File& file, const ModelConfig& c, int64_t block) {
  const std::string prefix = fmt::format("blocks.{}.", block);
  BlockWeights b;
  b.attn_norm = NormWeights::load(file, c, prefix + "attn_norm");
  b.mlp_norm = c.shared_norm ? b.attn_norm : NormWeights::load(file, c, prefix + "mlp_norm");
  if (c.experts > 0) b.router = read_tensor(file, prefix + "router");
  for (const auto& group : input_groups(c)) {
    for (const std::string& name : group) {
      const TensorInfo& info = file.tensor(prefix + name);
      LinearWeights& l = b.linears[name];
      l.weight = Matrix(int64_t(info.rows), int64_t(info.cols), read_tensor(file, prefix + name));
      if (file.find(prefix + name + ".bias")) l.bias = read_tensor(file, prefix + name + ".bias");
    }
  }
  return b;
}

std::vector<std::vector<std::string>> input_groups(const ModelConfig& c) {
  std::vector<std::vector<std::string>> groups = {{"q", "k", "v"}, {"o"}};
  const auto add_mlp = [&](const std::string& p) {
    if (c.gated) {
      groups.push_back({p + "gate", p + "up"});
    } else {
      groups.push_back({p + "up"});
    }
    groups.push_back({p + "down"});
  };
  if (c.experts == 0) add_mlp("");
  for (int64_t e = 0; e < c.experts; ++e) add_mlp(fmt::format("experts.{}.", e));
  return groups;
}

BlockRunner::BlockRunner(std::shared_ptr<const File> file, int64_t window, int threads)
    : file_(std::move(file)),
      config_(ModelConfig::load(*file_)),
      kernels_(cpu::best_kernels()),
      pool_(threads),
      cache_(cache_plan(config_, window)),
      attention_(pool_, kernels_, config_),
      positions_(size_t(window)),
      zeros_(size_t(window), 0) {
  std::iota(positions_.begin(), positions_.end(), 0);
  if (config_.positions == PositionKind::rope) inv_freq_ = read_tensor(*file_, "rope.inv_freq");
  if (config_.positions == PositionKind::alibi) alibi_ = read_tensor(*file_, "alibi");
}

void BlockRunner::embed(std::span<const std::vector<int32_t>> windows, float* x,
                        bool first_tokens) {
  const BlasThreads blas(pool_.threads());
  const ModelConfig& c = config_;
  const int64_t width = c.table_width(), hidden = c.hidden;
  const std::vector<float> table = read_tensor(*file_, "embedding");
  std::vector<float> projection, positions, rows;
  NormWeights after;
  if (c.projected()) projection = read_tensor(*file_, "project_in");
  if (c.positions == PositionKind::learned) positions = read_tensor(*file_, "positions");
  if (c.embedding_norm) after = NormWeights::load(*file_, c, "embedding_norm");
  for (const std::vector<int32_t>& window : windows) {
    const auto n = int64_t(window.size());
    rows.resize(size_t(n * width));
    for (int64_t t = 0; t < n; ++t) {
      std::copy_n(table.data() + window[size_t(t)] * width, width, rows.data() + t * width);
    }
    if (c.projected()) rows = product(rows, n, projection, hidden);
    const bool alone = first_tokens && &window == &windows.front();
    for (int64_t t = 0; t < n && !positions.empty(); ++t) {
      add(positions.data() + (alone ? 0 : t * hidden), hidden, rows.data() + t * hidden);
    }
    if (c.embedding_norm) {
      normalize(pool_, after, c.norm_eps, rows.data(), n, x);
    } else {
      std::copy(rows.begin(), rows.end(), x);
    }
    x += n * hidden;
  }
}

void BlockRunner::linear(const LinearWeights& l, const float* x, int64_t tokens, bool per_tensor,
                         float* y, int64_t stride) {
  if (l.input_bits < 16) {
    quantized_.resize(size_t(tokens * l.in()));
    const ActivationQuantizer quantizer{
        .bits = l.input_bits, .per_tensor = per_tensor, .weak = l.weak};
    quantizer.forward(pool_, x, tokens, l.in(), l.in(), quantized_.data());
    x = quantized_.data();
  }
  multiply(x, tokens, l.in(), l.weight.data(), l.out(), y, stride);
  for (int64_t t = 0; t < tokens && !l.bias.empty(); ++t)
    add(l.bias.data(), l.out(), y + t * stride);
}

/// Positions and rounding of q, k and v; k and v go into the cache.
void BlockRunner::finish_heads(const Scheme& scheme, int64_t tokens) {
  const ModelConfig& c = config_;
  const int64_t stride = c.q_width() + 2 * c.kv_width();
  const int64_t q_range = scheme.range_width(c.heads, c.head_dim);
  const int64_t kv_range = scheme.range_width(c.kv_heads, c.head_dim);
  pool_.parallel_for(tokens, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = qkv_.data() + t * stride;
      float* k = row + c.q_width();
      for (int64_t h = 0; h < c.heads + c.kv_heads && !inv_freq_.empty(); ++h) {
        reference::rope({row + h * c.head_dim, size_t(c.head_dim)}, inv_freq_, t,
                        c.rope_attention_factor);
      }
      for (float* x = row; x < k && scheme.query_bits < 16; x += q_range) {
        reference::fake_quantize({x, size_t(q_range)}, scheme.query_bits);
      }
      for (float* x = k; x < row + stride && scheme.kv_bits < 16; x += kv_range) {
        reference::fake_quantize_kv({x, size_t(kv_range)}, scheme.kv_bits);
      }
      cache_.append(0, 0, t, k, k + c.kv_width());
    }
  });
}

void BlockRunner::attention(const BlockWeights& block, const Scheme& scheme, const float* x,
                            int64_t tokens, const Tap& tap, Sight sight, float* out) {
  const ModelConfig& c = config_;
  const int64_t stride = c.q_width() + 2 * c.kv_width();
  if (tap) tap({"q", "k", "v"}, x, tokens, c.hidden);
  qkv_.resize(size_t(tokens * stride));
  int64_t column = 0;
  for (const char* name : {"q", "k", "v"}) {
    const LinearWeights& l = block.linears.at(name);
    linear(l, x, tokens, scheme.per_tensor, qkv_.data() + column, stride);
    column += l.out();
  }
  finish_heads(scheme, tokens);
  attended_.resize(size_t(tokens * c.q_width()));
  if (sight == Sight::causal) {
    look_back(tokens);
  } else {
    take_own_values(tokens);
  }
  if (tap) tap({"o"}, attended_.data(), tokens, c.q_width());
  linear(block.linears.at("o"), attended_.data(), tokens, scheme.per_tensor, out, c.hidden);
}

void BlockRunner::look_back(int64_t tokens) {
  const int64_t width = config_.q_width(), stride = width + 2 * config_.kv_width();
  const std::span<const int32_t> positions(positions_.data(), size_t(tokens));
  const Batch batch{.tokens = positions,
                    .positions = positions,
                    .sequences = {zeros_.data(), size_t(tokens)},
                    .logit_rows = {}};
  const int64_t runs[] = {0, tokens};
  attention_.run(cache_, 0, alibi_.empty() ? nullptr : alibi_.data(), batch, runs,
                 {qkv_.data(), stride}, {attended_.data(), width});
}

/// Attention where a token's own value is all that it sees.
void BlockRunner::take_own_values(int64_t tokens) {
  const ModelConfig& c = config_;
  const int64_t stride = c.q_width() + 2 * c.kv_width(), group = c.heads / c.kv_heads;
  for (int64_t t = 0; t < tokens; ++t) {
    const float* v = qkv_.data() + (t + 1) * stride - c.kv_width();
    float* out = attended_.data() + t * c.q_width();
    for (int64_t h = 0; h < c.heads; ++h) {
      std::copy_n(v + h / group * c.head_dim, c.head_dim, out + h * c.head_dim);
    }
  }
}

void BlockRunner::mlp(const BlockWeights& block, const std::string& p, bool per_tensor,
                      const float* x, int64_t tokens, const Tap& tap, float* out) {
  const ModelConfig& c = config_;
  const int64_t stride = c.gated ? 2 * c.mlp : c.mlp;
  if (tap) {
    if (c.gated) {
      tap({p + "gate", p + "up"}, x, tokens, c.hidden);
    } else {
      tap({p + "up"}, x, tokens, c.hidden);
    }
  }
  const auto rows = size_t(tokens);
  std::vector<float> inner(rows * size_t(stride)), active(rows * size_t(c.mlp));
  if (c.gated) linear(block.linears.at(p + "gate"), x, tokens, per_tensor, inner.data(), stride);
  linear(block.linears.at(p + "up"), x, tokens, per_tensor, inner.data() + stride - c.mlp, stride);
  pool_.parallel_for(tokens, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const float* gate = inner.data() + t * stride;
      kernels_.activate(c.activation, gate, c.gated ? gate + c.mlp : nullptr, c.mlp,
                        active.data() + t * c.mlp);
    }
  });
  if (tap) tap({p + "down"}, active.data(), tokens, c.mlp);
  linear(block.linears.at(p + "down"), active.data(), tokens, per_tensor, out, c.hidden);
}

void BlockRunner::experts(const BlockWeights& block, bool per_tensor, const float* x,
                          int64_t tokens, const Tap& tap, float* out) {
  const ModelConfig& c = config_;
  const std::vector<float> logits =
      product({x, x + tokens * c.hidden}, tokens, block.router, c.experts);
  std::vector<std::vector<std::pair<int64_t, float>>> visits(size_t(c.experts));
  for (int64_t t = 0; t < tokens; ++t) {
    const auto row = std::span(logits).subspan(size_t(t * c.experts), size_t(c.experts));
    for (const reference::Choice& choice : reference::route(row, c.experts_used)) {
      visits[size_t(choice.expert)].emplace_back(t, choice.weight);
    }
  }
  std::fill_n(out, tokens * c.hidden, 0.0f);
  for (int64_t e = 0; e < c.experts; ++e) {
    const auto& visit = visits[size_t(e)];
    if (visit.empty()) continue;
    std::vector<float> in(visit.size() * size_t(c.hidden)), y(in.size());
    for (size_t i = 0; i < visit.size(); ++i) {
      std::copy_n(x + visit[i].first * c.hidden, c.hidden, in.data() + int64_t(i) * c.hidden);
    }
    mlp(block, fmt::format("experts.{}.", e), per_tensor, in.data(), int64_t(visit.size()), tap,
        y.data());
    for (size_t i = 0; i < visit.size(); ++i) {
      float* to = out + visit[i].first * c.hidden;
      const float* from = y.data() + int64_t(i) * c.hidden;
      for (int64_t d = 0; d < c.hidden; ++d) to[d] += visit[i].second * from[d];
    }
  }
}

void BlockRunner::forward(const BlockWeights& block, const Scheme& scheme, float* x, int64_t tokens,
                          const Tap& tap, Sight sight) {
  const BlasThreads blas(pool_.threads());
  const ModelConfig& c = config_;
  const int64_t n = tokens * c.hidden;
  const auto size = size_t(n);
  std::vector<float> normed(size), attended(size), mlped(size);
  const auto normed_x = [&](const NormWeights& w) -> const float* {
    if (c.post_norm) return x;
    normalize(pool_, w, c.norm_eps, x, tokens, normed.data());
    return normed.data();
  };
  const auto run_mlp = [&] {
    const float* in = normed_x(block.mlp_norm);
    if (c.experts > 0) {
      experts(block, scheme.per_tensor, in, tokens, tap, mlped.data());
    } else {
      mlp(block, "", scheme.per_tensor, in, tokens, tap, mlped.data());
    }
  };
  const auto post_norm = [&](const NormWeights& w) {
    if (!c.post_norm) return;
    normed.assign(x, x + n);
    normalize(pool_, w, c.norm_eps, normed.data(), tokens, x);
  };
  attention(block, scheme, normed_x(block.attn_norm), tokens, tap, sight, attended.data());
  if (c.parallel) run_mlp();
  add(attended.data(), n, x);
  post_norm(block.attn_norm);
  if (!c.parallel) run_mlp();
  add(mlped.data(), n, x);
  post_norm(block.mlp_norm);
}

}  // namespace oq::calibrate
