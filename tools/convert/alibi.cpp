#include "tools/convert/alibi.h"

#include <bit>
#include <cmath>

#include "format/half.h"

namespace oq::convert {

void Alibi::row(uint64_t head, std::span<float> out) const {
  const auto rounded = [&](float x) { return in_bf16 ? to_float(to_bf16(x)) : x; };
  const float slope = rounded(slopes[head]);
  for (size_t t = 0; t < out.size(); ++t) {
    out[t] = rounded(slope * rounded(float(t))) / divisor;
  }
}

std::vector<float> alibi_slopes(int64_t heads) {
  const auto power = std::bit_floor(uint64_t(heads));
  // The base is rounded to f32 before it is raised, in all implementations.
  const auto base = float(std::exp2(-8.0 / double(power)));
  const auto between = float(std::exp2(-4.0 / double(power)));
  std::vector<float> slopes;
  for (uint64_t h = 0; h < uint64_t(heads); ++h) {
    const double exponent = h < power ? double(h + 1) : double(2 * (h - power) + 1);
    slopes.push_back(float(std::pow(double(h < power ? base : between), exponent)));
  }
  return slopes;
}

}  // namespace oq::convert
