#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace oq::calibrate {

/// One way to store one thing: its bytes, and what goes wrong with it.
struct Price {
  uint64_t bytes = 0;
  double error = 0;
};

/// Chooses one option for each item, so that the sum of errors is small and all bytes together are
/// at most `budget`: everything starts at its cheapest, and the step up that saves most error per
/// byte is taken as long as one fits. Of each item only the options on the lower convex hull count,
/// so that steps come in falling order of worth: whatever budget they end at exactly, no choice of
/// those bytes has less error (Everett 1963). What is left over then buys single better options.
/// Throws oq::Error where not even the cheapest options fit.
std::vector<size_t> allocate(std::span<const std::vector<Price>> items, uint64_t budget);

}  // namespace oq::calibrate
