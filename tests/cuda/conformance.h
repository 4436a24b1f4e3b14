#pragma once

#include <cstdint>

#include "kernels/cuda/stream.h"

namespace oq::test {

enum class Instruction { mma_f16, mma_u8, mma_and_popc, warp, halves, copy, loads, atomics };

struct ConformanceArgs {
  const uint32_t* in;
  uint32_t* out;
};
void run_conformance(cuda::Stream& stream, Instruction what, ConformanceArgs args);

}  // namespace oq::test
