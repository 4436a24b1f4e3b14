#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include "format/packed.h"

namespace oq::calibrate {

/// How scale and zero point are chosen.
enum class Tuning {
  minmax,  ///< from the least and the largest weight
  mse,     ///< searched: OWQ's grid over scales, and over zero points where they are free
};

/// Codes of one group: w = scale * (code - zero), codes 0..max_code.
struct Grid {
  float scale = 1;
  int zero = 0;

  /// The code nearest to w. Ties go to even before the zero point is added, as in the references;
  /// the bounds are integers, so that clamping first changes nothing.
  uint8_t code(float w, int max_code) const {
    const float low = float(-zero), high = float(max_code - zero);
    const float t = std::clamp(w / scale, low, high);
    constexpr float kShift = 0x1.8p23f;  // rounds |t| < 2^22 to even in two additions
    return uint8_t(int((t + kShift) - kShift) + zero);
  }
  float value(uint8_t code) const { return scale * float(int(code) - zero); }
};

struct GridOptions {
  Packing packing = {};  ///< bits, five levels; a constant zero mode makes it symmetric
  Tuning tuning = Tuning::minmax;
  int row_steps = 100;   ///< scales that mse tries for the grid of a whole row
  int group_steps = 40;  ///< and of a group
  /// Scales and weak weights stay fp32, as in the references' own tests, instead of being rounded
  /// to what a file stores before any code is chosen. Such a result cannot be packed.
  bool fp32_scales = false;
};

/// The grid of a group's live weights; `steps` is one of the options'. With qmax the largest code,
/// low = min(0, min w), high = max(0, max w), and both 0 counting as -1 and 1:
///
///   minmax, asymmetric  s = (high - low) / qmax, z = rint(-low / s)
///   minmax, symmetric   s = max(-low, high) / z, z the packing's constant: at 2^(b-1) a weight
///                       at the positive end is clipped by a step (OWQ), at 2^(b-1) - 1 none is
///   mse                 of s_i = s i / steps, i = 1..steps, and, when asymmetric, all zero points
///                       0..qmax the pair with the least sum |w - Q(w)|^2.4; of equals the first.
///                       With `importance` (E[x^2] of each weight's input), the least
///                       sum importance |w - Q(w)|^2: what the output loses, inputs apart
///
/// A scale is rounded to f16 first, unless fp32_scales; one that rounds to 0 becomes the smallest.
/// Throws oq::Error on a weight that is not finite, or a scale beyond f16.
Grid fit_grid(std::span<const float> weights, const GridOptions& options, int steps,
              std::span<const float> importance = {});

}  // namespace oq::calibrate
