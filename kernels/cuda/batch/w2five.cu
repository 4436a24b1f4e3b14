#include "kernels/cuda/batch_linear.h"

namespace oq::cuda {

template void start_batch<7, true>(Stream&, const BatchArgs&);
template void start_dequantize<7, true>(Stream&, const BatchArgs&);

}  // namespace oq::cuda
