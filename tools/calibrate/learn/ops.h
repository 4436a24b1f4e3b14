#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/activation.h"
#include "kernels/cpu/thread_pool.h"
#include "tools/calibrate/block.h"

namespace oq::calibrate {

/// y = norm(x) backwards: dx += what comes of dy, and, where they are not null, d_weight and
/// d_bias [n] += theirs. x, dy, dx: [tokens][n]. `rms` as reference::rms_norm, else as
/// reference::layer_norm.
struct NormBackward {
  bool rms;
  float eps;
  int64_t n;
  const float* weight;
  float* d_weight;
  float* d_bias;

  void run(ThreadPool& pool, const float* x, const float* dy, int64_t tokens, float* dx) const;
};

/// Rotations of heads by position (reference::rope), from a table.
class Rope {
 public:
  /// `inv_freq` empty: nothing is rotated.
  Rope(std::span<const float> inv_freq, double factor, int64_t tokens);

  /// Rotates `heads` heads of each row t of x in place, by position t; rows `stride` apart.
  void rotate(ThreadPool& pool, float* x, int64_t tokens, int64_t heads, int64_t head_dim,
              int64_t stride) const;
  /// The transpose of that, which takes gradients back.
  void rotate_back(ThreadPool& pool, float* d, int64_t tokens, int64_t heads, int64_t head_dim,
                   int64_t stride) const;

 private:
  void run(ThreadPool& pool, float* x, int64_t tokens, int64_t heads, int64_t head_dim,
           int64_t stride, float sign) const;

  int64_t half_;
  std::vector<float> cos_, sin_;  ///< [tokens][half]
};

/// y = activation(gate) * up, or activation(gate) where up is null, backwards, over n values: takes
/// dy in `d`, writes d_gate, and leaves d_up in `d`.
void activate_backward(Activation activation, const float* gate, const float* up, int64_t n,
                       float* d, float* d_gate);

}  // namespace oq::calibrate
