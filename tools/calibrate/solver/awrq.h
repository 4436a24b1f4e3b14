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

}  // namespace oq::calibrate
