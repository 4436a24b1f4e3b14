#pragma once

#include <cmath>

#include "kernels/cuda/device.h"

/// What the threads of a block work out together.
namespace oq::cuda {

constexpr int kWarps = 8;  ///< of a block of a linear
constexpr int kThreads = 32 * kWarps;

struct Sum {
  OQ_DEVICE static float start() { return 0.0f; }
  OQ_DEVICE static float join(float a, float b) { return a + b; }
};
struct Max {
  OQ_DEVICE static float start() { return -INFINITY; }
  OQ_DEVICE static float join(float a, float b) { return fmaxf(a, b); }
};
struct Min {
  OQ_DEVICE static float start() { return INFINITY; }
  OQ_DEVICE static float join(float a, float b) { return fminf(a, b); }
};

/// In every lane, and the same bits in all: xor meets the same pairs in every lane.
template <class Rule>
OQ_DEVICE float warp_reduce(float x) {
  OQ_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) x = Rule::join(x, shuffle_xor(x, mask));
  return x;
}

/// In every thread. `scratch` has a float for each warp; free again after the call.
template <class Rule>
OQ_DEVICE float block_reduce(float x, float* scratch) {
  x = warp_reduce<Rule>(x);
  if (lane_id() == 0) scratch[warp_id()] = x;
  sync_block();
  float all = Rule::start();
  for (int w = 0; w < block_threads() / 32; ++w) all = Rule::join(all, scratch[w]);
  sync_block();
  return all;
}

}  // namespace oq::cuda
