#include "kernels/cuda/batch_linear.h"

namespace oq::cuda {

template void start_batch<3, false>(Stream&, const BatchArgs&);
template void start_dequantize<3, false>(Stream&, const BatchArgs&);

}  // namespace oq::cuda
