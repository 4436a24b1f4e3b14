#include "kernels/cuda/packed_linear.h"

namespace oq::cuda {

template void start_packed<2, false, false>(Stream&, const PackedArgs&);
template void start_packed<2, false, true>(Stream&, const PackedArgs&);

}  // namespace oq::cuda
