#pragma once

#include <cstdint>
#include <span>

#include "kernels/cpu/thread_pool.h"

namespace oq::calibrate {

/// Fake quantization of activations, with gradients: what kernels/activation_grid.h and
/// kernels/kv_grid.h do at run time. Ranges are those of the values at hand, each time.
struct ActivationQuantizer {
  enum class Kind { linear_input, cache };  ///< by ActivationGrid, or by KvGrid

  Kind kind = Kind::linear_input;
  int bits = 16;                        ///< 16: nothing is done
  bool per_tensor = false;              ///< one range for all rows
  std::span<const uint32_t> weak = {};  ///< columns left out of the range and not quantized
  float zero_limit = 0;  ///< above 0, |zero| is at most this, as in the references (1e4)

  bool active() const { return bits < 16; }

  /// out = Q(x), [rows][cols] both, `stride` floats from row to row. `out` may be x.
  void forward(ThreadPool& pool, const float* x, int64_t rows, int64_t cols, int64_t stride,
               float* out) const;

  /// d: in dQ, out dx, in the shape of x, which is what `forward` took. Rounding passes gradients
  /// through, but for the zero point's; the range's go to the extreme values, in equal parts where
  /// several are equal.
  void backward(ThreadPool& pool, const float* x, int64_t rows, int64_t cols, int64_t stride,
                float* d) const;
};

}  // namespace oq::calibrate
