#pragma once

#include <memory>
#include <string>
#include <vector>

#include "tools/calibrate/learn/linear_graph.h"

namespace oq::calibrate {

/// What the parts of a block's graph share.
struct GraphContext {
  const ModelConfig& config;
  ThreadPool& pool;
  const cpu::Kernels& kernels;
  bool per_tensor = false;  ///< of activation quantization
};

/// One MLP, or one expert: down(activation(gate(x)) up(x)) or down(activation(up(x))).
class MlpGraph {
 public:
  /// Linears are those whose names start with `prefix`. x [tokens][hidden] must live until
  /// `backward`; out [tokens][hidden].
  void forward(const GraphContext& g, const BlockWeights& w, const std::string& prefix,
               const float* x, int64_t tokens, float* out);
  /// Adds to `gradients` and, where it is not null, to dx.
  void backward(const GraphContext& g, const BlockWeights& w, const std::string& prefix,
                const float* d_out, BlockWeights& gradients, float* dx);

 private:
  int64_t tokens_ = 0;
  LinearGraph gate_, up_, down_;
  std::vector<float> gate_y_, up_y_, active_, d_active_, d_gate_;
};

/// Experts behind a router: each token's output is the sum over its chosen experts, weighted by
/// the softmax of their logits. Which ones are chosen has no gradient.
class ExpertsGraph {
 public:
  void forward(const GraphContext& g, const BlockWeights& w, const float* x, int64_t tokens,
               float* out);
  void backward(const GraphContext& g, const BlockWeights& w, const float* d_out,
                BlockWeights& gradients, float* dx);

 private:
  struct Visit {
    int64_t token;
    float weight;
  };
  struct Expert {
    std::vector<Visit> visits;
    std::vector<float> x, y;  ///< [visits][hidden]
    MlpGraph mlp;
  };

  void choose(const GraphContext& g, const BlockWeights& w);
  void expert_backward(const GraphContext& g, const BlockWeights& w, int64_t index,
                       const float* d_out, BlockWeights& gradients, float* dx);

  const float* x_ = nullptr;
  int64_t tokens_ = 0;
  std::vector<std::unique_ptr<Expert>> experts_;
  std::vector<float> logits_, d_logits_, d_x_, d_y_;
};

}  // namespace oq::calibrate
