#include "tools/convert/rtn.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include <fmt/format.h>

#include "format/error.h"

namespace oq::convert {
namespace {

/// Ties to even for |x| < 2^22, in two additions that a compiler can do eight at a time.
float round_even(float x) {
  constexpr float kShift = 0x1.8p23f;
  return (x + kShift) - kShift;
}

struct Grid {
  f16 scale;
  int zero;
};

Grid choose_grid(std::span<const float> w, const Packing& p, uint64_t row, uint64_t column) {
  float low = 0, high = 0;
  bool finite = true;
  for (float x : w) {
    finite &= std::isfinite(x);
    low = std::min(low, x);
    high = std::max(high, x);
  }
  const int qmax = p.max_code();
  const bool symmetric = p.zero_mode == ZeroMode::constant;
  const double range =
      symmetric ? double(std::max(-low, high)) / p.zero : (double(high) - double(low)) / qmax;
  f16 scale = to_f16(float(range));
  if (!finite || !std::isfinite(to_float(scale))) {
    throw Error(
        {.what =
             finite ? "has weights too large for f16 scales" : "has a weight that is not finite",
         .where = fmt::format("row {}, columns {} to {}", row, column, column + w.size() - 1),
         .hint = "the checkpoint is damaged or was trained to overflow"});
  }
  if (to_float(scale) == 0) scale = {1};
  if (symmetric) return {scale, p.zero};
  const float zero = std::clamp(-low / to_float(scale), 0.0f, float(qmax));
  return {scale, int(round_even(zero))};
}

}  // namespace

void rtn_row(std::span<const float> weights, uint64_t row, PackedBuilder& out) {
  const PackedLayout& layout = out.layout();
  const Packing& p = layout.packing;
  std::vector<uint8_t> codes(weights.size());
  for (uint64_t g = 0; g < layout.groups; ++g) {
    const uint64_t begin = g * layout.group;
    const auto w = weights.subspan(begin, std::min<uint64_t>(layout.group, weights.size() - begin));
    const Grid grid = choose_grid(w, p, row, begin);
    out.set_scale(row, g, grid.scale);
    if (p.zero_mode != ZeroMode::constant) out.set_zero(row, g, grid.zero);
    // Clamped first: the bounds are integers, so rounding cannot leave them.
    const float scale = to_float(grid.scale);
    const float least = float(-grid.zero), most = float(p.max_code() - grid.zero);
    for (size_t i = 0; i < w.size(); ++i) {
      const float q = round_even(std::min(std::max(w[i] / scale, least), most));
      codes[begin + i] = uint8_t(int(q) + grid.zero);
    }
  }
  out.set_codes(row, codes);
}

}  // namespace oq::convert
