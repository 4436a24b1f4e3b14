#include "tools/calibrate/learn/linear_graph.h"

#include <algorithm>

#include "tools/calibrate/learn/product.h"

namespace oq::calibrate {

void LinearGraph::forward(ThreadPool& pool, const LinearWeights& l, bool per_tensor, const float* x,
                          int64_t tokens, float* y, int64_t stride, const LinearGraph* sibling) {
  x_ = input_ = x;
  tokens_ = tokens;
  quantizer_ = {.bits = l.input_bits, .per_tensor = per_tensor, .weak = l.weak};
  const auto same = [&](const ActivationQuantizer& q) {
    return q.bits == quantizer_.bits &&
           std::equal(q.weak.begin(), q.weak.end(), l.weak.begin(), l.weak.end());
  };
  if (sibling != nullptr && same(sibling->quantizer_)) {
    input_ = sibling->input_;
  } else if (quantizer_.active()) {
    quantized_.resize(size_t(tokens * l.in()));
    quantizer_.forward(pool, x, tokens, l.in(), l.in(), quantized_.data());
    input_ = quantized_.data();
  }
  multiply(pool, {.m = tokens,
                  .n = l.out(),
                  .k = l.in(),
                  .a = {input_, l.in()},
                  .b = {l.weight.data(), l.in(), true},
                  .c = y,
                  .c_stride = stride});
  for (int64_t t = 0; t < tokens && !l.bias.empty(); ++t) {
    for (int64_t i = 0; i < l.out(); ++i) y[t * stride + i] += l.bias[size_t(i)];
  }
}

void LinearGraph::backward(ThreadPool& pool, const LinearWeights& l, const float* dy,
                           int64_t stride, LinearWeights& gradient, float* dx) {
  multiply(pool, {.m = l.out(),
                  .n = l.in(),
                  .k = tokens_,
                  .a = {dy, stride, true},
                  .b = {input_, l.in()},
                  .c = gradient.weight.data(),
                  .c_stride = l.in(),
                  .add = true});
  for (int64_t t = 0; t < tokens_ && !gradient.bias.empty(); ++t) {
    for (int64_t i = 0; i < l.out(); ++i) gradient.bias[size_t(i)] += dy[t * stride + i];
  }
  if (dx == nullptr) return;
  const bool quantized = quantizer_.active();
  if (quantized) d_input_.resize(size_t(tokens_ * l.in()));
  multiply(pool, {.m = tokens_,
                  .n = l.in(),
                  .k = l.out(),
                  .a = {dy, stride},
                  .b = {l.weight.data(), l.in()},
                  .c = quantized ? d_input_.data() : dx,
                  .c_stride = l.in(),
                  .add = !quantized});
  if (!quantized) return;
  quantizer_.backward(pool, x_, tokens_, l.in(), l.in(), d_input_.data());
  for (size_t i = 0; i < d_input_.size(); ++i) dx[i] += d_input_[i];
}

}  // namespace oq::calibrate
