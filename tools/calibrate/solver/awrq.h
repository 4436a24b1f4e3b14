#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "tools/calibrate/solver/hessian.h"
#include "tools/calibrate/solver/linalg.h"

namespace oq::calibrate {

/// AWRQ's reformulated weights W' = W (I + M H^-1): of all weights those whose product with the
/// quantized inputs comes closest to W x. H is the factor's, damped; columns that are dead in it
/// become 0. AWRQ is then gptq() from W'. Memory: two matrices of W's size beside it.
Matrix reformulate(ThreadPool& pool, const Matrix& w, const Matrix& cross,
                   const InverseFactor& factor);

/// Quantizes inputs [tokens][channels] in place to `bits` bits and back, by kernels/'s
/// ActivationGrid: one grid for each token, or for the whole window. Weak channels (ascending) are
/// left out of the range and stay as they are, as in the runtime.
void quantize_activations(ThreadPool& pool, std::span<float> x, int64_t channels, int bits,
                          bool per_tensor, std::span<const uint32_t> weak = {});

/// SmoothQuant's migration (Xiao et al. 2022): W diag(s) and x / s.
///   s_j = max(a_j^alpha / w_j^(1 - alpha), min_scale)
/// with a_j, w_j the largest magnitudes of channel j in inputs and weights (of all linears that
/// share the input), each at least 1e-5.
std::vector<float> smoothing_scales(std::span<const float> input_max,
                                    std::span<const float> weight_max, double alpha,
                                    double min_scale);

/// max_j = max(max_j, |x_tj|) over rows t of x, [*][channels = max.size()].
void update_channel_max(std::span<const float> x, std::span<float> max);

/// W <- W diag(s).
void scale_columns(Matrix& w, std::span<const float> s);

}  // namespace oq::calibrate
