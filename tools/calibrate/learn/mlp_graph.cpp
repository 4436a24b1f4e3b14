#include "tools/calibrate/learn/mlp_graph.h"

#include <algorithm>

#include <fmt/format.h>

#include "kernels/reference/ops.h"
#include "tools/calibrate/learn/ops.h"
#include "tools/calibrate/learn/product.h"
#include "tools/calibrate/learn/vector_math.h"

namespace oq::calibrate {

void MlpGraph::forward(const GraphContext& g, const BlockWeights& w, const std::string& prefix,
                       const float* x, int64_t tokens, float* out) {
  const ModelConfig& c = g.config;
  const auto size = size_t(tokens * c.mlp);
  tokens_ = tokens;
  for (auto* v : {&up_y_, &active_}) v->resize(size);
  up_.forward(g.pool, w.linears.at(prefix + "up"), g.per_tensor, x, tokens, up_y_.data(), c.mlp);
  if (c.gated) {
    gate_y_.resize(size);
    gate_.forward(g.pool, w.linears.at(prefix + "gate"), g.per_tensor, x, tokens, gate_y_.data(),
                  c.mlp, &up_);
  }
  const float* inner = c.gated ? gate_y_.data() : up_y_.data();
  g.pool.parallel_for(tokens, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      g.kernels.activate(c.activation, inner + t * c.mlp,
                         c.gated ? up_y_.data() + t * c.mlp : nullptr, c.mlp,
                         active_.data() + t * c.mlp);
    }
  });
  down_.forward(g.pool, w.linears.at(prefix + "down"), g.per_tensor, active_.data(), tokens, out,
                c.hidden);
}

void MlpGraph::backward(const GraphContext& g, const BlockWeights& w, const std::string& prefix,
                        const float* d_out, BlockWeights& gradients, float* dx) {
  const ModelConfig& c = g.config;
  const auto linear = [&](const char* name, LinearGraph& graph, const float* dy, int64_t stride,
                          float* d) {
    graph.backward(g.pool, w.linears.at(prefix + name), dy, stride,
                   gradients.linears.at(prefix + name), d);
  };
  d_active_.assign(active_.size(), 0);
  linear("down", down_, d_out, c.hidden, d_active_.data());
  d_gate_.resize(active_.size());
  const float* inner = c.gated ? gate_y_.data() : up_y_.data();
  g.pool.parallel_for(tokens_, 4, [&](int64_t begin, int64_t end, int) {
    const int64_t at = begin * c.mlp;
    activate_backward(c.activation, inner + at, c.gated ? up_y_.data() + at : nullptr,
                      (end - begin) * c.mlp, d_active_.data() + at, d_gate_.data() + at);
  });
  if (!c.gated) return linear("up", up_, d_gate_.data(), c.mlp, dx);
  linear("gate", gate_, d_gate_.data(), c.mlp, dx);
  linear("up", up_, d_active_.data(), c.mlp, dx);
}

void ExpertsGraph::choose(const GraphContext& g, const BlockWeights& w) {
  const ModelConfig& c = g.config;
  experts_.resize(size_t(c.experts));
  for (auto& expert : experts_) {
    if (!expert) expert = std::make_unique<Expert>();
    expert->visits.clear();
    expert->x.clear();
  }
  logits_.resize(size_t(tokens_ * c.experts));
  multiply(g.pool, {.m = tokens_,
                    .n = c.experts,
                    .k = c.hidden,
                    .a = {x_, c.hidden},
                    .b = {w.router.data(), c.hidden, true},
                    .c = logits_.data(),
                    .c_stride = c.experts});
  for (int64_t t = 0; t < tokens_; ++t) {
    const auto row = std::span(logits_).subspan(size_t(t * c.experts), size_t(c.experts));
    for (const reference::Choice& choice : reference::route(row, c.experts_used)) {
      Expert& e = *experts_[size_t(choice.expert)];
      e.visits.push_back({t, choice.weight});
      e.x.insert(e.x.end(), x_ + t * c.hidden, x_ + (t + 1) * c.hidden);
    }
  }
}

void ExpertsGraph::forward(const GraphContext& g, const BlockWeights& w, const float* x,
                           int64_t tokens, float* out) {
  const ModelConfig& c = g.config;
  x_ = x;
  tokens_ = tokens;
  choose(g, w);
  std::fill_n(out, tokens * c.hidden, 0.0f);
  for (int64_t e = 0; e < c.experts; ++e) {
    Expert& expert = *experts_[size_t(e)];
    if (expert.visits.empty()) continue;
    expert.y.resize(expert.x.size());
    expert.mlp.forward(g, w, fmt::format("experts.{}.", e), expert.x.data(),
                       int64_t(expert.visits.size()), expert.y.data());
    const float* from = expert.y.data();
    for (const Visit& v : expert.visits) {
      float* to = out + v.token * c.hidden;
      for (int64_t i = 0; i < c.hidden; ++i) to[i] += v.weight * from[i];
      from += c.hidden;
    }
  }
}

/// y_t = sum_e p_e y_e: dy_e = p_e dy, dp_e = dy . y_e, which is left in d_logits_.
void ExpertsGraph::expert_backward(const GraphContext& g, const BlockWeights& w, int64_t index,
                                   const float* d_out, BlockWeights& gradients, float* dx) {
  const int64_t hidden = g.config.hidden;
  Expert& e = *experts_[size_t(index)];
  d_y_.resize(e.y.size());
  d_x_.assign(e.x.size(), 0);
  for (size_t i = 0; i < e.visits.size(); ++i) {
    const Visit& v = e.visits[i];
    const float *d = d_out + v.token * hidden, *y = e.y.data() + int64_t(i) * hidden;
    float* d_y = d_y_.data() + int64_t(i) * hidden;
    for (int64_t k = 0; k < hidden; ++k) d_y[k] = v.weight * d[k];
    d_logits_[size_t(v.token * g.config.experts + index)] =
        lane_sum(hidden, [&](int64_t k) { return d[k] * y[k]; });
  }
  e.mlp.backward(g, w, fmt::format("experts.{}.", index), d_y_.data(), gradients,
                 dx == nullptr ? nullptr : d_x_.data());
  for (size_t i = 0; i < e.visits.size() && dx != nullptr; ++i) {
    float* to = dx + e.visits[i].token * hidden;
    const float* from = d_x_.data() + int64_t(i) * hidden;
    for (int64_t k = 0; k < hidden; ++k) to[k] += from[k];
  }
}

void ExpertsGraph::backward(const GraphContext& g, const BlockWeights& w, const float* d_out,
                            BlockWeights& gradients, float* dx) {
  const ModelConfig& c = g.config;
  d_logits_.assign(logits_.size(), 0);
  for (int64_t e = 0; e < c.experts; ++e) {
    if (!experts_[size_t(e)]->visits.empty()) expert_backward(g, w, e, d_out, gradients, dx);
  }
  // Softmax over the chosen: dlogit_e = p_e (dp_e - sum p dp). The others have none.
  std::vector<float> mean(size_t(tokens_), 0.0f);
  const auto each = [&](const auto& f) {
    for (int64_t e = 0; e < c.experts; ++e) {
      for (const Visit& v : experts_[size_t(e)]->visits) {
        f(v.weight, d_logits_[size_t(v.token * c.experts + e)], mean[size_t(v.token)]);
      }
    }
  };
  each([](float p, float dp, float& sum) { sum += p * dp; });
  each([](float p, float& dp, float sum) { dp = p * (dp - sum); });
  multiply(g.pool, {.m = c.experts,
                    .n = c.hidden,
                    .k = tokens_,
                    .a = {d_logits_.data(), c.experts, true},
                    .b = {x_, c.hidden},
                    .c = gradients.router.data(),
                    .c_stride = c.hidden,
                    .add = true});
  if (dx == nullptr) return;
  multiply(g.pool, {.m = tokens_,
                    .n = c.hidden,
                    .k = c.experts,
                    .a = {d_logits_.data(), c.experts},
                    .b = {w.router.data(), c.hidden},
                    .c = dx,
                    .c_stride = c.hidden,
                    .add = true});
}

}  // namespace oq::calibrate
