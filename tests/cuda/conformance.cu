/// One kernel for each instruction of kernels/cuda/device.h, all lanes' results written out. Run
/// by the emulator and by a GPU, they are held to the same expectation (conformance_test.cpp).

#include "kernels/cuda/device.h"
#include "tests/cuda/conformance.h"

namespace oq::test {
namespace {

using namespace oq::cuda;

__global__ void mma_f16_kernel(ConformanceArgs a) {
  const int lane = lane_id();
  float c[4];
  uint32_t x[4], y[2];
  for (int i = 0; i < 4; ++i) c[i] = bits_to_float(a.in[lane * 10 + i]);
  for (int i = 0; i < 4; ++i) x[i] = a.in[lane * 10 + 4 + i];
  for (int i = 0; i < 2; ++i) y[i] = a.in[lane * 10 + 8 + i];
  mma_f16(c, x, y);
  for (int i = 0; i < 4; ++i) a.out[lane * 4 + i] = float_to_bits(c[i]);
}

__global__ void mma_u8_kernel(ConformanceArgs a) {
  const int lane = lane_id();
  int32_t c[4];
  uint32_t x[4], y[2];
  for (int i = 0; i < 4; ++i) c[i] = int32_t(a.in[lane * 10 + i]);
  for (int i = 0; i < 4; ++i) x[i] = a.in[lane * 10 + 4 + i];
  for (int i = 0; i < 2; ++i) y[i] = a.in[lane * 10 + 8 + i];
  mma_u8(c, x, y);
  for (int i = 0; i < 4; ++i) a.out[lane * 4 + i] = uint32_t(c[i]);
}

__global__ void mma_and_popc_kernel(ConformanceArgs a) {
  const int lane = lane_id();
  int32_t c[4];
  uint32_t x[2];
  for (int i = 0; i < 4; ++i) c[i] = int32_t(a.in[lane * 7 + i]);
  for (int i = 0; i < 2; ++i) x[i] = a.in[lane * 7 + 4 + i];
  mma_and_popc(c, x, a.in[lane * 7 + 6]);
  for (int i = 0; i < 4; ++i) a.out[lane * 4 + i] = uint32_t(c[i]);
}

__global__ void warp_kernel(ConformanceArgs a) {
  const int lane = lane_id();
  const float x = bits_to_float(a.in[lane]);
  a.out[lane] = float_to_bits(shuffle_xor(x, 5));
  a.out[96 + lane] = uint32_t(shuffle_xor(int32_t(a.in[lane]), 9));
  a.out[32 + lane] = float_to_bits(shuffle(x, (lane * 3 + 1) % 32));
  a.out[64 + lane] = ballot(a.in[lane] % 3 == 0);
}

/// 65536 halves to floats, and floats to halves.
__global__ void halves_kernel(ConformanceArgs a) {
  for (int i = block_x() * block_threads() + thread_id(); i < 65536;
       i += grid_x() * block_threads()) {
    a.out[i] = float_to_bits(half_to_float(uint16_t(i)));
    a.out[65536 + i] = float_to_half(bits_to_float(a.in[i]));
  }
}

/// Each thread copies 16 bytes in each of two groups; reads another thread's after the barrier.
__global__ void copy_kernel(ConformanceArgs a) {
  auto* shared = reinterpret_cast<uint32_t*>(shared_memory());
  const int n = block_threads(), t = thread_id();
  async_copy16(shared + 4 * t, a.in + 4 * t);
  async_commit();
  async_copy16(shared + 4 * (n + t), a.in + 4 * (n + t));
  async_commit();
  async_wait<1>();
  sync_block();
  for (int i = 0; i < 4; ++i) a.out[4 * t + i] = shared[4 * (n - 1 - t) + i];
  async_wait<0>();
  sync_block();
  for (int i = 0; i < 4; ++i) a.out[4 * (n + t) + i] = shared[4 * (2 * n - 1 - t) + i];
}

/// Words as vectors of four, as vectors of two, and, behind a fence, as floats written by this very
/// thread.
__global__ void loads_kernel(ConformanceArgs a) {
  const int t = thread_id(), n = block_threads();
  const Words4 four = load_stream(reinterpret_cast<const Words4*>(a.in) + t);
  for (int i = 0; i < 4; ++i) a.out[4 * t + i] = four.w[i];
  const Words2 two = load_stream(reinterpret_cast<const Words2*>(a.in) + t);
  for (int i = 0; i < 2; ++i) a.out[4 * n + 2 * t + i] = two.w[i];
  fence_device();
  a.out[6 * n + t] = float_to_bits(load_fresh(reinterpret_cast<const float*>(a.out) + 4 * t));
}

__global__ void atomics_kernel(ConformanceArgs a) { atomic_add(a.out, a.in[thread_id()]); }

}  // namespace

void run_conformance(cuda::Stream& stream, Instruction what, ConformanceArgs args) {
  switch (what) {
    case Instruction::mma_f16:
      return launch(stream, "mma_f16", mma_f16_kernel, {}, args);
    case Instruction::mma_u8:
      return launch(stream, "mma_u8", mma_u8_kernel, {}, args);
    case Instruction::mma_and_popc:
      return launch(stream, "mma_and_popc", mma_and_popc_kernel, {}, args);
    case Instruction::warp:
      return launch(stream, "warp", warp_kernel, {}, args);
    case Instruction::halves:
      return launch(stream, "halves", halves_kernel, {.x = 4, .threads = 128}, args);
    case Instruction::copy:
      return launch(stream, "copy", copy_kernel, {.threads = 64, .shared = 2048}, args);
    case Instruction::loads:
      return launch(stream, "loads", loads_kernel, {.threads = 64}, args);
    case Instruction::atomics:
      return launch(stream, "atomics", atomics_kernel, {.x = 7, .threads = 96}, args);
  }
}

}  // namespace oq::test
