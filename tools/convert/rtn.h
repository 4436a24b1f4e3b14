#pragma once

#include <cstdint>
#include <span>

#include "format/packed.h"

namespace oq::convert {

/// Rounds one row to nearest and stores it, group by group:
///
///   asymmetric   s = f16((max(0, w) - min(0, w)) / qmax)   z = clamp(rint(-min / s), 0, qmax)
///   symmetric    s = f16(max|w| / h)                       z = h,  h = 2^(bits-1) - 1
///   code = clamp(rint(w / s) + z, 0, qmax)
///
/// with qmax the packing's largest code; w2* has qmax 4 and h 2. The scale is rounded to f16
/// before any code is chosen; one that rounds to 0 becomes the smallest f16 instead.
///
/// Rows of different panels of 8 may be stored at the same time. Throws oq::Error on a weight that
/// is not finite, or so large that its scale is not, naming row and columns.
void rtn_row(std::span<const float> weights, uint64_t row, PackedBuilder& out);

}  // namespace oq::convert
