/// Random numbers and repeated bytes straight into device memory: synthetic weights that never were
/// on the host.
///
/// Regime: once, at loading. Bound: writes of memory. Work split: a thread makes a word of 32 bits
///   from its place and the seed alone, so the content does not depend on the launch.
/// Measured: not measured.

#include "kernels/cuda/block.h"
#include "kernels/cuda/kernels.h"

namespace oq::cuda {
namespace {

/// SplitMix64's finalizer  [Steele, Lea and Flood 2014].
OQ_DEVICE uint64_t mixed(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

/// An f16, uniform around `mean`.
OQ_DEVICE uint32_t half_of(const FillArgs& a, uint32_t random) {
  const float u = float(random >> 8) * 0x1p-23f - 1.0f;
  return float_to_half(a.mean + a.spread * u);
}

OQ_DEVICE uint32_t word_of(const FillArgs& a, int64_t i) {
  const uint64_t random = mixed(a.seed + uint64_t(i) * 0x9E3779B97F4A7C15u);
  if (a.kind == Fill::bits) return uint32_t(random);
  if (a.kind == Fill::halves) {
    return half_of(a, uint32_t(random)) | half_of(a, uint32_t(random >> 32)) << 16;
  }
  uint32_t word = 0;
  for (int b = 0; b < 4; ++b) {
    word |= uint32_t(a.pattern >> ((4 * i + b) % a.period * 8) & 0xFFu) << (8 * b);
  }
  return word;
}

__global__ void fill_kernel(FillArgs a) {
  const int64_t i = int64_t(block_x()) * kThreads + thread_id();
  if (i < a.words) a.to[i] = word_of(a, i);
}

}  // namespace

void start_fill(Stream& stream, const FillArgs& a) {
  launch(stream, "fill", fill_kernel,
         {.x = int((a.words + kThreads - 1) / kThreads), .threads = kThreads}, a);
}

}  // namespace oq::cuda
