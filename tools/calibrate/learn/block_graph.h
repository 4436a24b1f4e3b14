#pragma once

#include <memory>
#include <vector>

#include "tools/calibrate/block.h"
#include "tools/calibrate/learn/attention.h"
#include "tools/calibrate/learn/mlp_graph.h"
#include "tools/calibrate/learn/ops.h"

namespace oq::calibrate {

/// One decoder block in fp32, forwards as BlockRunner has it (a test holds it to that) and
/// backwards. Explicit: a forward keeps what its backward needs. One window at a time, and one
/// thread at a time; results depend on neither the number of threads nor what ran before.
/// Memory: per token about 12 hidden + 6 mlp floats beside a head's tile of scores.
class BlockGraph {
 public:
  /// `window`: the most tokens that a forward takes. The pool must outlive this.
  BlockGraph(const File& file, const ModelConfig& config, int64_t window, ThreadPool& pool);
  BlockGraph(const BlockGraph&) = delete;
  BlockGraph& operator=(const BlockGraph&) = delete;

  /// y [tokens][hidden] = block(x). Activations, q and KV are quantized as `scheme` says, inputs
  /// of linears as each linear says. x and y must live until `backward`, and are not the same.
  /// `map`, where it is not null, is AttentionGraph's.
  void forward(const BlockWeights& w, const Scheme& scheme, const float* x, int64_t tokens,
               float* y, float* map = nullptr, Sight sight = Sight::causal);

  /// Of the last `forward`, with its weights: adds to `gradients` (of_shape), and writes dx
  /// [tokens][hidden]. With a null dx, what comes before q, k and v gets no gradient, nor does a
  /// norm that MLP and attention stand side by side behind.
  void backward(const BlockWeights& w, const float* dy, BlockWeights& gradients, float* dx,
                const float* d_map = nullptr);

  /// Zeros in the shape of a block's weights.
  static BlockWeights of_shape(const BlockWeights& w);

 private:
  const float* norm(const NormWeights& w, const float* x, std::vector<float>& out);
  void norm_backward(const NormWeights& w, const float* x, const float* dy, NormWeights& gradient,
                     float* dx);
  void attend(const BlockWeights& w, const float* x, float* out);
  void attend_backward(const BlockWeights& w, const float* d_out, BlockWeights& gradients,
                       float* dx);
  void quantize_heads();
  void mlp(const BlockWeights& w, const float* x, float* out);
  void mlp_backward(const BlockWeights& w, const float* d_out, BlockWeights& gradients, float* dx);
  void backward_post_norm(const BlockWeights& w, const float* dy, BlockWeights& gradients,
                          float* dx);

  ModelConfig config_;
  ThreadPool& pool_;
  GraphContext context_;
  std::vector<float> alibi_;
  Rope rope_;
  AttentionGraph attention_;
  ActivationQuantizer query_, cache_;
  int64_t q_range_ = 0, kv_range_ = 0;  ///< neighbouring values of a token that share a range
  LinearGraph q_, k_, v_, o_;
  MlpGraph mlp_;
  ExpertsGraph experts_;

  const float* x_ = nullptr;  ///< of the last forward
  int64_t tokens_ = 0;
  Sight sight_ = Sight::causal;
  float* map_ = nullptr;
  const float* d_map_ = nullptr;
  Heads heads_, quantized_, d_heads_;
  std::vector<float> normed_, mlp_normed_, attended_, attention_out_, mlp_out_, between_, sum_;
  std::vector<float> d_attended_, d_normed_, d_between_, d_sum_;
};

}  // namespace oq::calibrate
