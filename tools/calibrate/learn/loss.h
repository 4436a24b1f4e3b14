#pragma once

#include <cstdint>
#include <span>

namespace oq::calibrate {

/// share * mean((y - target)^2), in the order of elements; its gradient is added to d_y.
double squared_error(std::span<const float> y, std::span<const float> target, double share,
                     std::span<float> d_y);

}  // namespace oq::calibrate
