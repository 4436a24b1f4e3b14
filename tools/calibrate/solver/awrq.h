#pragma once

#include "tools/calibrate/solver/hessian.h"
#include "tools/calibrate/solver/linalg.h"

namespace oq::calibrate {

/// AWRQ's reformulated weights W' = W (I + M H^-1): of all weights those whose product with the
/// quantized inputs comes closest to W x. H is the factor's, damped; columns that are dead in it
/// become 0. AWRQ is then gptq() from W'. Memory: two matrices of W's size beside it.
Matrix reformulate(ThreadPool& pool, const Matrix& w, const Matrix& cross,
                   const InverseFactor& factor);

}  // namespace oq::calibrate
