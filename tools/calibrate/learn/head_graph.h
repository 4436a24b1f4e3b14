#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tools/calibrate/block.h"

namespace oq::calibrate {

/// What stands behind the last block, in fp32: final norm, projection, head; and what is asked of
/// its predictions, the language-model loss of a window or their divergence from others. Nothing of
/// it is learned. Memory: the head in fp32, and the logits of kTokens tokens, twice for divergence.
class HeadGraph {
 public:
  static constexpr int64_t kTokens = 64;  ///< whose logits exist at a time

  /// The pool must outlive this.
  HeadGraph(const File& file, const ModelConfig& config, ThreadPool& pool);

  /// x [tokens][hidden], behind the last block, of the tokens of `window`: the mean of
  /// -log p(window[t + 1]) over t. Where d_x is not null, the gradient goes there, in x's shape.
  double loss(const float* x, std::span<const int32_t> window, float* d_x);

  /// Of each of `tokens`, KL(p || q) of what comes next: p predicted from `expected`, q from `x`,
  /// both [tokens][hidden] behind the last block.
  std::vector<double> divergence(const float* expected, const float* x, int64_t tokens);

  /// share * the mean of these; its gradient by x is added to d_x, in x's shape.
  double divergence_loss(const float* expected, const float* x, int64_t tokens, double share,
                         float* d_x);

 private:
  const float* head_input(const float* x, int64_t tokens);
  void make_logits(const float* input, int64_t tokens);
  void make_both_logits(const float* expected, const float* x, int64_t tokens);
  double chunk(std::span<const int32_t> next, int64_t first, double share, bool backward);
  void backward_logits(int64_t first, int64_t tokens);
  void backward(const float* x, int64_t tokens, float* d_x);

  ModelConfig config_;
  ThreadPool& pool_;
  NormWeights norm_;
  std::vector<float> project_, head_;
  std::vector<float> normed_, projected_, logits_, expected_, d_input_, d_normed_;
  std::vector<double> losses_;
};

}  // namespace oq::calibrate
