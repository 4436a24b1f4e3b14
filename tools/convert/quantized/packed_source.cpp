#include "tools/convert/quantized/packed_source.h"

#include <algorithm>

namespace oq::convert {

void PackedSource::dequantize_row(uint64_t row, std::span<float> out) const {
  PackedRow in;
  read_row(row, in);
  for (uint64_t g = 0; g < layout_.groups; ++g) {
    const float scale = to_float(in.scales[g]);
    const uint64_t last = std::min(layout_.cols, (g + 1) * layout_.group);
    for (uint64_t k = g * layout_.group; k < last; ++k) {
      out[k] = scale * float(int(in.codes[k]) - in.zeros[g]);
    }
  }
  for (size_t i = 0; i < in.weak.size(); ++i) out[weak_indices()[i]] = in.weak[i];
}

void PackedSource::copy_row(uint64_t row, uint64_t to, PackedBuilder& out) const {
  PackedRow in;
  read_row(row, in);
  out.set_codes(to, in.codes);
  for (uint64_t g = 0; g < layout_.groups; ++g) {
    out.set_scale(to, g, in.scales[g]);
    out.set_zero(to, g, in.zeros[g]);
  }
  for (size_t i = 0; i < in.weak.size(); ++i) out.set_weak_weight(to, uint32_t(i), in.weak[i]);
}

}  // namespace oq::convert
