#include "kernels/cuda/integer_kernel.h"

namespace oq::cuda {

template void start_integers<7, true, IntegerKernel::narrow>(Stream&, const IntegerArgs&);
template void start_integers<7, true, IntegerKernel::wide>(Stream&, const IntegerArgs&);
template void start_integers<7, true, IntegerKernel::planes>(Stream&, const IntegerArgs&);

}  // namespace oq::cuda
