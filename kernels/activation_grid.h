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
  /// Integer kernels store code - middle(), which fits int8.
  float middle() const { return float(1 << (bits - 1)); }
  /// The x whose stored code is 0.
  float offset() const { return scale * (middle() - zero); }
};

}  // namespace oq
