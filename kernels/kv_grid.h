#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "format/half.h"

namespace oq {

/// Dynamic asymmetric quantization of one KV head's keys or values of one token, or of all heads'
/// together (Scheme::heads_share_range), as a cache stores them: x = scale code + low, codes
/// 0..2^bits - 1, scale and low in f16, which is an eighth of a byte per value at a head_dim of 32.
/// What the rounding of low leaves outside is clamped.
struct KvGrid {
  f16 scale, low;
  int bits = 8;

  /// bits 2..8. A value that is not finite makes all of them NaNs.
  static KvGrid of(std::span<const float> x, int bits) {
    float least = std::numeric_limits<float>::infinity(), most = -least, sum = 0;
    for (float v : x) {
      least = std::min(least, v);
      most = std::max(most, v);
      sum += v - v;  // 0, or a NaN for good
    }
    const f16 low = to_f16(least + sum);
    const float scale = (most - to_float(low)) / float((1 << bits) - 1);
    return {to_f16(scale > 0x1p-24f ? scale : 0x1p-24f + sum), low, bits};
  }

  /// 0 for all where the grid is of NaNs.
  uint8_t code(float x) const {
    const float c = (x - to_float(low)) / to_float(scale) + 0.5f;
    return c >= 1 ? uint8_t(std::min(c, float((1 << bits) - 1))) : uint8_t(0);
  }
  float value(uint8_t code) const { return to_float(scale) * float(code) + to_float(low); }
};

}  // namespace oq
