#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "format/file.h"
#include "format/scheme.h"
#include "kernels/reference/ops.h"
#include "runtime/config.h"

namespace oq::test {

/// A model once more, from the papers' formulas and the reference ops alone: no cache, no
/// batches, weights in fp32. What the decoder is held to.
class PlainModel {
 public:
  using Rows = std::vector<std::vector<float>>;  ///< one per token

  explicit PlainModel(std::shared_ptr<const File> file)
      : file_(std::move(file)),
        c_(ModelConfig::load(file_->metadata())),
        scheme_(Scheme::load(file_->metadata())) {}

  /// The logits after every token.
  Rows run(const std::vector<int32_t>& tokens) const {
    Rows x = embed(tokens);
    for (int64_t b = 0; b < c_.blocks; ++b) block(fmt::format("blocks.{}.", b), x);
    if (c_.final_norm) x = norm("final_norm", x);
    if (c_.projected()) x = linear("project_out", x, false);
    return linear(c_.tied_head ? "embedding" : "head", x, false);
  }

 private:
  std::vector<float> values(const std::string& name) const {
    const TensorInfo& info = file_->tensor(name);
    if (info.kind == Kind::packed) return reference::dequantize(file_->packed(info));
    std::vector<float> v(info.elements());
    const std::byte* data = file_->data(info).data();
    for (size_t i = 0; i < v.size(); ++i) {
      v[i] = info.kind == Kind::f32 ? reinterpret_cast<const float*>(data)[i]
                                    : to_float(reinterpret_cast<const f16*>(data)[i]);
    }
    return v;
  }

  std::vector<float> row(const std::string& name, int64_t index) const {
    const auto table = values(name);
    const auto cols = int64_t(file_->tensor(name).cols);
    return {table.begin() + index * cols, table.begin() + (index + 1) * cols};
  }

  Rows embed(const std::vector<int32_t>& tokens) const {
    Rows x;
    for (int32_t token : tokens) x.push_back(row("embedding", token));
    if (c_.projected()) x = linear("project_in", x, false);
    for (size_t t = 0; t < x.size() && c_.positions == PositionKind::learned; ++t) {
      add(x[t], row("positions", int64_t(t)));
    }
    return c_.embedding_norm ? norm("embedding_norm", x) : x;
  }

  Rows linear(const std::string& name, Rows x, bool in_block = true) const {
    const int bits = scheme_.activation_bits;
    if (in_block && bits < 16 && scheme_.per_tensor) {
      std::vector<float> all;
      for (const auto& r : x) all.insert(all.end(), r.begin(), r.end());
      reference::fake_quantize(all, bits);
      auto next = all.begin();
      for (auto& r : x)
        std::copy_n(std::exchange(next, next + long(r.size())), r.size(), r.begin());
    } else if (in_block && bits < 16) {
      for (auto& r : x) reference::fake_quantize(r, bits);
    }
    const TensorInfo& info = file_->tensor(name);
    const auto weight = values(name);
    const auto bias = file_->find(name + ".bias") ? values(name + ".bias") : std::vector<float>();
    for (auto& r : x) {
      std::vector<float> y(info.rows);
      reference::linear(weight, bias, r, 1, int64_t(info.rows), int64_t(info.cols), y);
      r = std::move(y);
    }
    return x;
  }

  Rows norm(const std::string& name, Rows x) const {
    const auto weight = values(name);
    for (auto& r : x) {
      const auto in = r;
      if (c_.norm == NormKind::rms) {
        reference::rms_norm(in, weight, c_.norm_eps, r);
      } else {
        reference::layer_norm(in, weight, values(name + ".bias"), c_.norm_eps, r);
      }
    }
    return x;
  }

  void block(const std::string& prefix, Rows& x) const {
    const auto before = [&](const char* name) { return c_.post_norm ? x : norm(prefix + name, x); };
    const auto after = [&](const char* name) {
      if (c_.post_norm) x = norm(prefix + name, x);
    };
    const Rows attn_in = before("attn_norm");
    const Rows mlp_beside = c_.shared_norm ? attn_in : before("mlp_norm");  // used when parallel
    add(x, attention(prefix, attn_in));
    after("attn_norm");
    add(x, mlp_or_experts(prefix, c_.parallel ? mlp_beside : before("mlp_norm")));
    after("mlp_norm");
  }

  /// Heads of one token.
  std::span<float> head(std::vector<float>& v, int64_t h) const {
    return std::span(v).subspan(size_t(h * c_.head_dim), size_t(c_.head_dim));
  }

  static void quantize(std::span<float> x, int bits, bool cached) {
    if (bits == 16) return;
    if (cached) {
      reference::fake_quantize_kv(x, bits);
    } else {
      reference::fake_quantize(x, bits);
    }
  }

  /// Positions and rounding of q, k or v.
  void finish_heads(Rows& rows, bool rotated, int bits, bool cached) const {
    for (size_t t = 0; t < rows.size(); ++t) {
      for (int64_t h = 0; h < int64_t(rows[t].size()) / c_.head_dim; ++h) {
        if (rotated && c_.positions == PositionKind::rope) {
          reference::rope(head(rows[t], h), values("rope.inv_freq"), int64_t(t),
                          c_.rope_attention_factor);
        }
        if (!scheme_.heads_share_range) quantize(head(rows[t], h), bits, cached);
      }
      if (scheme_.heads_share_range) quantize(rows[t], bits, cached);
    }
  }

  Rows attention(const std::string& prefix, const Rows& x) const {
    Rows q = linear(prefix + "q", x), k = linear(prefix + "k", x), v = linear(prefix + "v", x);
    finish_heads(q, true, scheme_.query_bits, false);
    finish_heads(k, true, scheme_.kv_bits, true);
    finish_heads(v, false, scheme_.kv_bits, true);
    Rows out(q.size(), std::vector<float>(size_t(c_.q_width())));
    for (size_t t = 0; t < q.size(); ++t) {
      const size_t window = c_.window > 0 ? size_t(c_.window) : t + 1;
      const size_t first = t + 1 > window ? t + 1 - window : 0;
      for (int64_t h = 0; h < c_.heads; ++h) {
        std::vector<float> keys, live_values, bias;
        const int64_t kv = h / (c_.heads / c_.kv_heads);
        for (size_t s = first; s <= t; ++s) {
          const auto key = head(k[s], kv), value = head(v[s], kv);
          keys.insert(keys.end(), key.begin(), key.end());
          live_values.insert(live_values.end(), value.begin(), value.end());
        }
        if (c_.positions == PositionKind::alibi) {
          const auto all = row("alibi", h);
          bias.assign(all.begin() + long(first), all.begin() + long(t) + 1);
        }
        reference::attention(head(q[t], h), keys, live_values, bias, int64_t(t + 1 - first),
                             head(out[t], h));
      }
    }
    return linear(prefix + "o", out);
  }

  Rows mlp_or_experts(const std::string& prefix, const Rows& x) const {
    if (c_.experts == 0) return mlp(prefix, x);
    const Rows logits = linear(prefix + "router", x, false);
    Rows sum(x.size(), std::vector<float>(size_t(c_.hidden)));
    for (size_t t = 0; t < x.size(); ++t) {
      for (const reference::Choice& c : reference::route(logits[t], c_.experts_used)) {
        const Rows y = mlp(fmt::format("{}experts.{}.", prefix, c.expert), {x[t]});
        for (size_t i = 0; i < sum[t].size(); ++i) sum[t][i] += c.weight * y[0][i];
      }
    }
    return sum;
  }

  Rows mlp(const std::string& prefix, const Rows& x) const {
    Rows up = linear(prefix + "up", x);
    const Rows gate = c_.gated ? linear(prefix + "gate", x) : up;
    for (size_t t = 0; t < up.size(); ++t) {
      for (size_t i = 0; i < up[t].size(); ++i) {
        const float a = activate(gate[t][i]);
        up[t][i] = c_.gated ? a * up[t][i] : a;
      }
    }
    return linear(prefix + "down", up);
  }

  float activate(float v) const {
    switch (c_.activation) {
      case Activation::gelu:
        return reference::gelu(v);
      case Activation::gelu_tanh:
        return reference::gelu_tanh(v);
      case Activation::relu:
        return reference::relu(v);
      case Activation::silu:
        break;
    }
    return reference::silu(v);
  }

  static void add(std::vector<float>& x, const std::vector<float>& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
  static void add(Rows& x, const Rows& y) {
    for (size_t t = 0; t < x.size(); ++t) add(x[t], y[t]);
  }

  std::shared_ptr<const File> file_;
  ModelConfig c_;
  Scheme scheme_;
};

}  // namespace oq::test
