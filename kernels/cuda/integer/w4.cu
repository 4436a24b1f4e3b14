#include "kernels/cuda/integer_kernel.h"

namespace oq::cuda {

template void start_integers<4, false, IntegerKernel::narrow>(Stream&, const IntegerArgs&);
template void start_integers<4, false, IntegerKernel::wide>(Stream&, const IntegerArgs&);
template void start_integers<4, false, IntegerKernel::planes>(Stream&, const IntegerArgs&);

}  // namespace oq::cuda
