/// Kernels of no model: what a device does for nothing, and how fast it reads and copies.
///
/// Regime: a device's limits, beside which the other kernels are measured. Bound: launch; memory.
/// Work split: a thread takes every n-th 16 bytes, n all threads, with 4 loads under way at a time.
/// Measured: not measured.

#include "kernels/cuda/block.h"
#include "kernels/cuda/kernels.h"

namespace oq::cuda {
namespace {

constexpr int kAtOnce = 4;

__global__ void nothing_kernel(int) {}

__global__ void __launch_bounds__(kThreads) read_kernel(ReadArgs a) {
  const auto* from = reinterpret_cast<const Words4*>(a.from);
  const int64_t count = a.bytes / 16, threads = int64_t(grid_x()) * kThreads;
  const int64_t me = int64_t(block_x()) * kThreads + thread_id();
  uint32_t sums[kAtOnce] = {};
  const auto add = [](uint32_t& sum, const Words4& v) { sum ^= v.w[0] ^ v.w[1] ^ v.w[2] ^ v.w[3]; };
  int64_t i = me;
  for (; i + (kAtOnce - 1) * threads < count; i += kAtOnce * threads) {
    Words4 v[kAtOnce];
    OQ_UNROLL
    for (int j = 0; j < kAtOnce; ++j) v[j] = load_stream(from + i + j * threads);
    OQ_UNROLL
    for (int j = 0; j < kAtOnce; ++j) add(sums[j], v[j]);
  }
  for (; i < count; i += threads) add(sums[0], load_stream(from + i));
  a.sums[me] = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
}

__global__ void __launch_bounds__(kThreads) copy_kernel(CopyArgs a) {
  const auto* from = static_cast<const Words4*>(a.from);
  auto* to = static_cast<Words4*>(a.to);
  const int64_t count = a.bytes / 16, threads = int64_t(grid_x()) * kThreads;
  for (int64_t i = int64_t(block_x()) * kThreads + thread_id(); i < count; i += threads) {
    to[i] = from[i];
  }
}

}  // namespace

void start_nothing(Stream& stream, const int& n) {
  launch(stream, "nothing", nothing_kernel, {}, n);
}
void start_read(Stream& stream, const ReadArgs& a) {
  launch(stream, "read", read_kernel, {.x = a.blocks, .threads = kThreads}, a);
}
void start_copy(Stream& stream, const CopyArgs& a) {
  launch(stream, "copy", copy_kernel, {.x = a.blocks, .threads = kThreads}, a);
}

}  // namespace oq::cuda
