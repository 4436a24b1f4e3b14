#pragma once

#include <type_traits>

#include "kernels/cuda/integer_bytes.h"
#include "kernels/cuda/integer_planes.h"

namespace oq::cuda {

template <int kBits, bool kFive, IntegerKernel kKernel>
using IntegerMultiplier =
    std::conditional_t<kKernel == IntegerKernel::planes, PlanesMultiplier<kBits, kFive>,
                       BytesMultiplier<kBits, kFive,
                                       kKernel != IntegerKernel::wide ? 1
                                       : kFive                        ? 2
                                                                      : 4>>;

/// Two blocks on an SM, 128 registers a thread, but where that would spill: 4 to 12 bytes for w2,
/// w3 and w8 on bytes, and for w6 on planes on sm_80.
template <int kBits, bool kFive, IntegerKernel kKernel>
constexpr int kIntegerBlocks = kFive || kKernel == IntegerKernel::wide ||
                                       (kKernel == IntegerKernel::narrow &&
                                        (kBits == 2 || kBits == 3 || kBits == 8)) ||
                                       (kKernel == IntegerKernel::planes && kBits == 6)
                                   ? 1
                                   : 2;

template <int kBits, bool kFive, IntegerKernel kKernel>
__global__ void __launch_bounds__(kThreads, kIntegerBlocks<kBits, kFive, kKernel>)
    integer_kernel(IntegerArgs args) {
  run_integers<IntegerMultiplier<kBits, kFive, kKernel>>(args);
}

template <int kBits, bool kFive, IntegerKernel kKernel>
void start_integers(Stream& stream, const IntegerArgs& args) {
  launch(stream, "integer_linear", integer_kernel<kBits, kFive, kKernel>,
         integer_grid<IntegerMultiplier<kBits, kFive, kKernel>>(args), args);
}

}  // namespace oq::cuda
