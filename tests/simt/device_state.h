#pragma once

#include <cstddef>
#include <string>

/// The emulated device as a whole: what a test may take away from it.
namespace oq::simt {

struct DeviceState {
  std::string missing;  ///< why there is no usable device; empty: there is one
  size_t memory = size_t(1) << 33;
  size_t used = 0;         ///< by what is allocated now
  size_t peak = 0;         ///< the most of it so far
  int recordings = 0;      ///< streams that record
  int launches_left = -1;  ///< the one after these fails; -1: none does
};
DeviceState& device_state();

}  // namespace oq::simt
