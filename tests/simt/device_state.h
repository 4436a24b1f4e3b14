#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/cuda/device_info.h"

/// The emulated device as a whole: what a test may take away from it.
namespace oq::simt {

struct DeviceState {
  cuda::DeviceInfo info{.name = "emulator",
                        .major = 9,
                        .minor = 0,
                        .processors = 4,
                        .driver = 13000,
                        .toolkit = 12000};
  size_t block_shared = 99 << 10;  ///< of a block; sm_86's, the least but for sm_75
  bool has_gemm = true;            ///< a library for matrix products
  size_t memory = size_t(1) << 33;
  size_t used = 0;            ///< by what is allocated now
  size_t peak = 0;            ///< the most of it so far
  int recordings = 0;         ///< streams that record
  int launches_left = -1;     ///< the one after these fails; -1: none does
  int allocations_left = -1;  ///< likewise, of memory
  int graphs_left = -1;       ///< likewise, of recordings that end as a graph
  uint64_t launches = 0;      ///< kernels that have started
};
DeviceState& device_state();

}  // namespace oq::simt
