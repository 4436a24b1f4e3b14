#pragma once

#include <cstdint>
#include <span>

namespace oq::calibrate {

/// share * mean((y - target)^2), in the order of elements; its gradient is added to d_y.
double squared_error(std::span<const float> y, std::span<const float> target, double share,
                     std::span<float> d_y);

/// share * the mean over rows, of `cols`, of |y_t - target_t|^2 / |target_t|^2; its gradient is
/// added to d_y. What reads a block's output is a norm, which divides by a token's size; a few
/// tokens (the first, in LLaMA's kin) are hundreds of times larger than all others, and alone
/// decide a mean of squares.
double relative_error(std::span<const float> y, std::span<const float> target, int64_t cols,
                      double share, std::span<float> d_y);

/// share * -log |mean over rows of cos(y_t, target_t)|, rows of `cols` (ABQ's distribution
/// correction, Zeng et al. 2024); its gradient is added to d_y.
double log_cosine(std::span<const float> y, std::span<const float> target, int64_t cols,
                  double share, std::span<float> d_y);

/// share * the mean over rows of KL(p || q) + KL(q || p), with p and q the rows of two attention
/// maps [tokens][tokens] (ABQ's attention loss, on the probabilities themselves: the reference
/// takes another softmax of them, which leaves nothing to learn from); its gradient is added to
/// d_p.
double map_divergence(std::span<const float> p, std::span<const float> q, int64_t tokens,
                      double share, std::span<float> d_p);

}  // namespace oq::calibrate
