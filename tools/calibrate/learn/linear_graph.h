#pragma once

#include <vector>

#include "tools/calibrate/activation_quantizer.h"
#include "tools/calibrate/block.h"

namespace oq::calibrate {

/// y = Q(x) W^T + b and its gradients. Q is what the linear's input_bits and weak columns say.
class LinearGraph {
 public:
  /// x [tokens][in] must live until `backward`. y [tokens][out], rows `stride` apart. A `sibling`
  /// has just run on the same x: where its Q is the same, so is its result.
  void forward(ThreadPool& pool, const LinearWeights& l, bool per_tensor, const float* x,
               int64_t tokens, float* y, int64_t stride, const LinearGraph* sibling = nullptr);

  /// Of the last `forward`: adds to the gradients of weight and bias, and to dx [tokens][in] where
  /// it is not null. dy as y.
  void backward(ThreadPool& pool, const LinearWeights& l, const float* dy, int64_t stride,
                LinearWeights& gradient, float* dx);

 private:
  ActivationQuantizer quantizer_;
  const float* x_ = nullptr;
  const float* input_ = nullptr;  ///< Q(x)
  int64_t tokens_ = 0;
  std::vector<float> quantized_, d_input_;
};

}  // namespace oq::calibrate
