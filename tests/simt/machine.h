#pragma once

#include <cstddef>
#include <cstdint>

/// The emulator: runs a CUDA kernel's source on the CPU. A block's threads are fibers, its warps 32
/// of them, and whatever makes threads wait for each other on a GPU makes fibers wait here. Blocks
/// run one after another. What a GPU leaves undefined is made to fail: shared memory starts as NaNs
/// and has poisoned red zones, threads of a warp that part before a warp instruction are an error,
/// and so is a block whose threads wait at different barriers.
namespace oq::simt {

/// Who runs first wherever the hardware may choose: threads of a warp, warps, and blocks. A warp
/// runs as far as it can before the next one does, so a missing barrier shows in one order or
/// another.
struct Order {
  enum class Kind { forward, reverse, random };
  Kind kind = Kind::forward;
  uint32_t seed = 1;
};
void set_order(Order order);
Order order();

/// A place in a kernel's source, for messages.
struct Place {
  const char* file;
  int line;
};

struct Extent {
  int x = 1, y = 1;   ///< blocks
  int threads = 32;   ///< a multiple of 32, at most 1024
  size_t shared = 0;  ///< bytes of dynamic shared memory
};

/// Runs kernel(arguments) on every thread of every block, and returns when all are done. Throws
/// oq::Error on what a GPU would refuse or leave undefined; `name` says where. Not thread-safe.
void run_grid(const char* name, const Extent& extent, void (*kernel)(const void*),
              const void* arguments);

/// Of the thread that runs now. PRECOND of all that follows: inside a kernel.
int thread_id();
int block_x();
int block_y();
int grid_x();
int block_threads();
std::byte* shared_memory();

void sync_block(Place place);

/// All 32 threads of a warp arrive, then `combine` gets what each gave and fills in what each
/// gets; in[i] and out[i] are lane i's. `what` and `detail` must be the same in all lanes.
using Combine = void (*)(const void* const* in, void* const* out);
void warp_instruction(const char* what, uint64_t detail, Place place, const void* in, void* out,
                      Combine combine);

/// cp.async of 16 bytes: until the thread waits for it the destination holds NaNs, and is
/// poisoned under AddressSanitizer.
void async_copy16(void* shared, const void* global, Place place);
void async_commit();
/// Until at most `pending` committed groups are still under way.
void async_wait(int pending);

/// How often an instruction ran, over all kernels: what a test asks to know that it was reached.
enum class Count { switches, barriers, warp_instructions, mma, async_copies };
uint64_t count(Count what);
void add_count(Count what);

}  // namespace oq::simt
