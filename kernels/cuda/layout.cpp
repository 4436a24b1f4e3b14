#include "kernels/cuda/layout.h"

#include <string>

#include "format/bytes.h"
#include "kernels/cuda/stream.h"

namespace oq::cuda {
namespace {

uint64_t unit_cols(const PackedLayout& l) {
  return uint64_t(kStripCols) * (l.packing.five_levels ? 3 : 1);
}
uint64_t units_of(const PackedLayout& l) { return (l.cols + unit_cols(l) - 1) / unit_cols(l); }
uint64_t tiles_of(const PackedLayout& l) { return (l.rows + kTileRows - 1) / kTileRows; }

Zeros zeros_of(const PackedLayout& l) {
  switch (l.packing.zero_mode) {
    case ZeroMode::constant:
      return Zeros::constant;
    case ZeroMode::i16:
      return Zeros::i16;
    case ZeroMode::code_width:
      break;
  }
  return Zeros::u8;
}

}  // namespace

PackedOffsets offsets_of(const PackedLayout& l) {
  constexpr uint64_t kMostRows = 1 << 30, kMostCols = 1 << 26;
  if (l.rows > kMostRows || l.cols > kMostCols) {
    throw DeviceError({.what = "a matrix too large for the CUDA kernels",
                       .expected = "at most 2^30 rows and 2^26 columns",
                       .found = std::to_string(l.rows) + " x " + std::to_string(l.cols)});
  }
  const Zeros zeros = zeros_of(l);
  const uint64_t zero_bytes = zeros == Zeros::constant ? 0 : zeros == Zeros::u8 ? 1 : 2;
  const uint64_t weak = l.packing.weak_columns, tiles = tiles_of(l);
  uint64_t at = 0;
  const auto take = [&](uint64_t bytes) {
    const uint64_t from = at;
    at = round_up(at + bytes, 256);
    return from;
  };
  take(tiles * units_of(l) * l.field_bits * 256);
  PackedOffsets o{};
  o.scales = take(tiles * l.groups * kTileRows * 2);
  o.zeros = take(tiles * l.groups * kTileRows * zero_bytes);
  o.weak_index = take(weak * 4);
  o.weak = take(tiles * weak * kTileRows * 2);
  o.weak_mask = take(weak > 0 ? units_of(l) * unit_cols(l) / 8 : 0);
  o.bytes = at;
  return o;
}

PackedMatrix shape_of(const PackedLayout& l) {
  return {.rows = int(l.rows),
          .cols = int(l.cols),
          .field_bits = int(l.field_bits),
          .five_levels = l.packing.five_levels,
          .tiles = int(tiles_of(l)),
          .units = int(units_of(l)),
          .group = int(l.group),
          .groups = int(l.groups),
          .zero_mode = zeros_of(l),
          .zero = l.packing.zero,
          .codes = nullptr,
          .scales = nullptr,
          .zeros = nullptr,
          .weak_columns = int(l.packing.weak_columns),
          .weak_bf16 = l.packing.weak_bf16,
          .weak_index = nullptr,
          .weak = nullptr,
          .weak_mask = nullptr};
}

PackedMatrix matrix_of(const PackedLayout& l, std::byte* base) {
  const PackedOffsets o = offsets_of(l);
  PackedMatrix m = shape_of(l);
  m.codes = reinterpret_cast<const uint32_t*>(base);
  m.scales = reinterpret_cast<const uint16_t*>(base + o.scales);
  m.zeros = base + o.zeros;
  m.weak_index = reinterpret_cast<const uint32_t*>(base + o.weak_index);
  m.weak = reinterpret_cast<const uint16_t*>(base + o.weak);
  if (m.weak_columns > 0) m.weak_mask = reinterpret_cast<const uint32_t*>(base + o.weak_mask);
  return m;
}

}  // namespace oq::cuda
