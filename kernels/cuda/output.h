#pragma once

#include "kernels/cuda/block.h"
#include "kernels/cuda/kernels.h"

/// The end of a linear: what a tile of 16 rows does with its sums.
namespace oq::cuda {

OQ_DEVICE float activated(Activation activation, float x) {
  switch (activation) {
    case Activation::silu:
      return x / (1.0f + expf(-x));
    case Activation::gelu:
      return 0.5f * x * erfcf(-x * 0.70710678f);
    case Activation::gelu_tanh:
      return x / (1.0f + expf(-1.5957691f * (x + 0.044715f * x * x * x)));
    case Activation::relu:
      return fmaxf(x, 0.0f);
  }
  return x;
}

/// The row of y that token m's results go to.
OQ_DEVICE float* output_row(const OutputArgs& out, bool experts, int m) {
  return out.y + (experts ? block_y() * out.expert_stride : 0) + int64_t(m) * out.stride;
}

/// Hands over one finished sum. `gate` is where the sums of the first of two linears wait for
/// those of the second; `last` says that this is the second, or the only one.
OQ_DEVICE void finish(const OutputArgs& out, bool experts, int m, int column, float sum,
                      float* gate, bool first, bool last) {
  float* y = output_row(out, experts, m) + column;
  switch (out.finish) {
    case Finish::store:
      *y = sum;
      return;
    case Finish::add:
      *y += sum;
      return;
    case Finish::multiply:
      *y *= sum;
      return;
    case Finish::activate:
      if (first) sum = activated(out.activation, sum);
      if (!first) sum *= *gate;
      if (last) {
        *y = sum;
      } else {
        *gate = sum;
      }
      return;
  }
}

/// The linear and tile that a block works on where linears stand side by side.
template <class Args>
OQ_DEVICE void find_tile(const Args& args, int& linear, int& tile) {
  linear = 0;
  tile = block_x();
  while (linear + 1 < args.count &&
         tile >= (args.linears[linear].matrix.rows + kTileRows - 1) / kTileRows) {
    tile -= (args.linears[linear].matrix.rows + kTileRows - 1) / kTileRows;
    ++linear;
  }
}

}  // namespace oq::cuda
