#pragma once

#include <algorithm>
#include <cmath>

namespace oq {

/// Dynamic asymmetric quantization of activations: x = scale (code - zero), codes 0..2^bits - 1.
/// zero lies anywhere, for 0 need not be in range.
struct ActivationGrid {
  float scale = 0, zero = 0;
  int bits = 8;

  /// scale = max((high - low) / (2^bits - 1), 1e-5), zero = round(-low / scale): OmniQuant's
  /// per-token and AWRQ's per-tensor quantizer. A NaN gives a NaN.
  static ActivationGrid of(float low, float high, int bits) {
    const float scale = std::max((high - low) / float((1 << bits) - 1), 1e-5f);
    return {scale, std::nearbyint(-low / scale), bits};
  }

  float top() const { return float((1 << bits) - 1); }
  float code(float x) const { return std::clamp(std::nearbyint(x / scale) + zero, 0.0f, top()); }
  /// Integer kernels store code - base(), which fits int8: where there is room the zero point
  /// itself, so that stored codes are multiples of the scale and nothing is left to correct.
  float base() const { return bits == 8 ? 128.0f : std::clamp(zero, 0.0f, top()); }
  /// x = scale (stored code + shift()).
  float shift() const { return base() - zero; }
};

}  // namespace oq
