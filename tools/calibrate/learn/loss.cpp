#include "tools/calibrate/learn/loss.h"

#include <algorithm>

#include "tools/calibrate/learn/vector_math.h"

namespace oq::calibrate {

double squared_error(std::span<const float> y, std::span<const float> target, double share,
                     std::span<float> d_y) {
  constexpr size_t kPiece = 1024;  // summed in fp32; pieces in fp64
  const double factor = share / double(y.size());
  const auto slope = float(2 * factor);
  double sum = 0;
  for (size_t first = 0; first < y.size(); first += kPiece) {
    const size_t n = std::min(kPiece, y.size() - first);
    const float *a = y.data() + first, *b = target.data() + first;
    float* d = d_y.data() + first;
    for (size_t i = 0; i < n; ++i) d[i] += slope * (a[i] - b[i]);
    sum += double(lane_sum(int64_t(n), [&](int64_t i) { return (a[i] - b[i]) * (a[i] - b[i]); }));
  }
  return sum * factor;
}

}  // namespace oq::calibrate
