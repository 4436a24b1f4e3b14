#pragma once

/// What kernels may ask of the machine: the only file of kernels/cuda with device intrinsics and
/// PTX. Kernels are written in the C++ that both compilers share, take one struct of arguments, and
/// are started by `launch`. A build for the host names a twin with the same names instead: the
/// emulator's is tests/simt/device.h.
#if defined(OQ_DEVICE_TWIN)
#include OQ_DEVICE_TWIN
#else

#include <cstddef>
#include <cstdint>

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/stream.h"

#define OQ_DEVICE __device__ __forceinline__
#define OQ_UNROLL _Pragma("unroll")

namespace oq::cuda {

/// Starts kernel(arguments) on a grid. Throws oq::Error when the device refuses; `name` says where.
void launch_kernel(Stream& stream, const char* name, const void* kernel, const Grid& grid,
                   void* arguments);
template <class Arguments>
void launch(Stream& stream, const char* name, void (*kernel)(Arguments), const Grid& grid,
            Arguments arguments) {
  launch_kernel(stream, name, reinterpret_cast<const void*>(kernel), grid, &arguments);
}

/// 8 and 16 bytes that one instruction loads.
struct alignas(8) Words2 {
  uint32_t w[2];
};
struct alignas(16) Words4 {
  uint32_t w[4];
};

OQ_DEVICE int thread_id() { return int(threadIdx.x); }
OQ_DEVICE int lane_id() { return int(threadIdx.x % 32); }
OQ_DEVICE int warp_id() { return int(threadIdx.x / 32); }
OQ_DEVICE int block_threads() { return int(blockDim.x); }
OQ_DEVICE int block_x() { return int(blockIdx.x); }
OQ_DEVICE int block_y() { return int(blockIdx.y); }
OQ_DEVICE int grid_x() { return int(gridDim.x); }

/// The block's dynamic shared memory, the only one that kernels use; 128-aligned.
OQ_DEVICE std::byte* shared_memory() {
  extern __shared__ __align__(128) unsigned char oq_shared[];
  return reinterpret_cast<std::byte*>(oq_shared);
}

OQ_DEVICE void sync_block() { __syncthreads(); }
OQ_DEVICE void sync_warp() { __syncwarp(); }

/// All 32 lanes take part in each of these.
OQ_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }
OQ_DEVICE int32_t shuffle_xor(int32_t x, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }
OQ_DEVICE float shuffle(float x, int lane) { return __shfl_sync(0xFFFFFFFFu, x, lane); }
OQ_DEVICE uint32_t ballot(bool x) { return __ballot_sync(0xFFFFFFFFu, x); }

/// Returns what stood there before.
OQ_DEVICE uint32_t atomic_add(uint32_t* p, uint32_t x) { return atomicAdd(p, x); }
/// What this thread wrote is seen by all threads of the device before what it writes next.
OQ_DEVICE void fence_device() { __threadfence(); }
/// Reads past the first-level cache, which does not know what other blocks wrote.
OQ_DEVICE float load_fresh(const float* p) { return __ldcg(p); }

OQ_DEVICE float half_to_float(uint16_t h) { return __half2float(__ushort_as_half(h)); }
OQ_DEVICE uint16_t float_to_half(float x) { return __half_as_ushort(__float2half_rn(x)); }
OQ_DEVICE float bits_to_float(uint32_t x) { return __uint_as_float(x); }
OQ_DEVICE uint32_t float_to_bits(float x) { return __float_as_uint(x); }

/// Weights, which a token reads once: they need not stay in the first-level cache.
OQ_DEVICE Words4 load_stream(const Words4* p) {
  Words4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
               : "l"(p));
  return v;
}
OQ_DEVICE Words2 load_stream(const Words2* p) {
  Words2 v;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
               : "=r"(v.w[0]), "=r"(v.w[1])
               : "l"(p));
  return v;
}

// sm_75 lacks a few instructions. Each is done here by what it has, from the same registers, so
// that no kernel knows: its mma are the halves and quarters of the larger ones (dp4a would want
// operands laid out anew), copies are never under way. Bit planes alone are missing (mma_and_popc).
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define OQ_SM_75
#endif

/// 16 bytes from global to shared memory, which must not be read before this thread has waited
/// for them, nor by others before a sync_block after that.
OQ_DEVICE void async_copy16(void* shared, const void* global) {
#if defined(OQ_SM_75)
  *static_cast<Words4*>(shared) = *static_cast<const Words4*>(global);
#else
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(uint32_t(__cvta_generic_to_shared(shared))),
      "l"(global)
      : "memory");
#endif
}
OQ_DEVICE void async_commit() {
#if !defined(OQ_SM_75)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
/// Until at most kPending committed groups of this thread are still under way.
template <int kPending>
OQ_DEVICE void async_wait() {
#if !defined(OQ_SM_75)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

/// c += a b: a 16 x 16 and b 16 x 8 of f16, c 16 x 8 of f32 (PTX ISA, mma.m16n8k16). With g =
/// lane / 4 and q = lane % 4:
///   a[0] row g, columns 2 q, 2 q + 1    a[1] row g + 8    a[2], a[3] the same, columns + 8
///   b[0] rows 2 q, 2 q + 1 of column g  b[1] rows + 8
///   c[0], c[1] row g, columns 2 q, 2 q + 1    c[2], c[3] row g + 8
OQ_DEVICE void mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2]) {
#if defined(OQ_SM_75)
  OQ_UNROLL
  for (int k = 0; k < 2; ++k) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2 * k]), "r"(a[2 * k + 1]), "r"(b[k]));
  }
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/// c += a b: a 16 x 32 and b 32 x 8 of u8, c 16 x 8 of s32 (PTX ISA, mma.m16n8k32).
///   a[0] row g, columns 4 q .. 4 q + 3    a[1] row g + 8    a[2], a[3] the same, columns + 16
///   b[0] rows 4 q .. 4 q + 3 of column g  b[1] rows + 16    c as above
OQ_DEVICE void mma_u8(int32_t c[4], const uint32_t a[4], const uint32_t b[2]) {
#if defined(OQ_SM_75)
  OQ_UNROLL
  for (int i = 0; i < 4; ++i) {  // rows g, then g + 8; columns 0..15, then 16..31
    asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.u8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+r"(c[i % 2 * 2]), "+r"(c[i % 2 * 2 + 1])
                 : "r"(a[i]), "r"(b[i / 2]));
  }
#else
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/// c += how many bits are 1 in both: a 16 x 128 and b 128 x 8 bits, c 16 x 8 of s32 (PTX ISA,
/// mma.m16n8k128). Compute capability 8.0 and later; sm_75 counts what differs alone, and stops.
///   a[0] row g, columns 32 q .. 32 q + 31  a[1] row g + 8
///   b    rows 32 q .. 32 q + 31 of column g    c as above
OQ_DEVICE void mma_and_popc(int32_t c[4], const uint32_t a[2], uint32_t b) {
#if defined(OQ_SM_75)
  __trap();
#else
  asm volatile(
      "mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc "
      "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
#endif
}

}  // namespace oq::cuda

#endif
