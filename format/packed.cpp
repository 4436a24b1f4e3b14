#include "format/packed.h"

#include <algorithm>
#include <bit>
#include <functional>

#include <fmt/format.h>

#include "format/bytes.h"
#include "format/error.h"

namespace oq {
namespace {

constexpr uint32_t kVectorBytes = 32;  ///< 8 rows x 4 bytes
constexpr uint64_t kSectionAlign = 64;
constexpr uint64_t kTail = 8;  ///< readable bytes after the zero points, so that one load takes all

Error bad_packing(std::string what, std::string expected, std::string found) {
  return Error(
      {.what = std::move(what), .expected = std::move(expected), .found = std::move(found)});
}

void check_packing(uint64_t rows, uint64_t cols, const Packing& p) {
  if (rows == 0 || cols == 0) {
    throw bad_packing("packed tensor is empty", "at least one row and column",
                      fmt::format("[{}, {}]", rows, cols));
  }
  if (p.bits < 2 || p.bits > 8 || (p.five_levels && p.bits != 2)) {
    throw bad_packing("no such code width", "2..8 bits, five levels at 2 only",
                      fmt::format("{} bits{}", p.bits, p.five_levels ? ", five levels" : ""));
  }
  if (p.zero_mode > ZeroMode::i16) {
    throw bad_packing("unknown zero mode", "0..2", std::to_string(int(p.zero_mode)));
  }
  if (p.group % kBlockCols != 0) {
    throw bad_packing("bad group", "a multiple of 32, or 0 for the whole row",
                      std::to_string(p.group));
  }
  if (p.weak_columns > cols) {
    throw bad_packing("more weak columns than columns", fmt::format("at most {}", cols),
                      std::to_string(p.weak_columns));
  }
}

uint32_t zero_bytes_of(const Packing& p) {
  switch (p.zero_mode) {
    case ZeroMode::constant:
      return 0;
    case ZeroMode::code_width:
      return p.five_levels ? 3 : p.bits;
    case ZeroMode::i16:
      return 2 * kPanelRows;
  }
  return 0;
}

/// `count * each` bytes at the next section boundary after `end`; moves `end` behind them.
uint64_t place(uint64_t& end, uint64_t count, uint64_t each, uint64_t tail = 0) {
  const uint64_t offset = round_up(end, kSectionAlign);
  uint64_t size = 0;
  if (!checked_mul(count, each, size) || !checked_add(offset, size, end) ||
      !checked_add(end, tail, end) || end > (uint64_t(1) << 62)) {
    throw bad_packing("packed tensor's size overflows", "below 2^62 bytes", "more");
  }
  return offset;
}

/// The fields of one row in one column block, 32 of `bits` bits, between their places in memory
/// and an array. A field that fits in a byte's low bits together with its neighbours lies there
/// ("whole"); the bits left over at the top of each byte, read upwards, make up the rest.
class BlockRow {
 public:
  /// `block` points at the block's first byte, `lane` is the row inside the panel.
  static void read(const uint8_t* block, uint32_t lane, uint32_t bits, uint8_t fields[32]) {
    for (uint32_t c = 0; c < 4; ++c) {
      uint8_t bytes[8];
      for (uint32_t j = 0; j < bits; ++j) bytes[j] = block[kVectorBytes * j + 4 * lane + c];
      const uint32_t mask = (1u << bits) - 1;
      const uint32_t whole = 8 / bits;  // NOLINT(clang-analyzer-core.DivideZero): 2..8 in a layout
      const uint32_t direct = whole * bits;
      for (uint32_t d = 0; d < direct; ++d) {
        fields[4 * d + c] = uint8_t((bytes[d % bits] >> (d / bits * bits)) & mask);
      }
      uint64_t spill = 0;
      const uint32_t left = 8 - direct;  // = bits left in each byte = fields left over
      for (uint32_t j = 0; j < bits && left > 0; ++j) {
        spill |= uint64_t(bytes[j] >> direct) << (j * left);
      }
      for (uint32_t d = direct; d < 8; ++d) {
        fields[4 * d + c] = uint8_t((spill >> ((d - direct) * bits)) & mask);
      }
    }
  }

  static void write(uint8_t* block, uint32_t lane, uint32_t bits, const uint8_t fields[32]) {
    for (uint32_t c = 0; c < 4; ++c) {
      uint8_t bytes[8] = {};
      const uint32_t whole = 8 / bits, direct = whole * bits, left = 8 - direct;
      for (uint32_t d = 0; d < direct; ++d) {
        bytes[d % bits] = uint8_t(bytes[d % bits] | (fields[4 * d + c] << (d / bits * bits)));
      }
      uint64_t spill = 0;
      for (uint32_t d = direct; d < 8; ++d) {
        spill |= uint64_t(fields[4 * d + c]) << ((d - direct) * bits);
      }
      for (uint32_t j = 0; j < bits && left > 0; ++j) {
        bytes[j] = uint8_t(bytes[j] | (((spill >> (j * left)) & ((1u << left) - 1)) << direct));
      }
      for (uint32_t j = 0; j < bits; ++j) block[kVectorBytes * j + 4 * lane + c] = bytes[j];
    }
  }
};

/// Zero points of code width are a little-endian bit stream of 8 rows.
int read_bits(const uint8_t* p, uint32_t first, uint32_t bits) {
  int v = 0;
  for (uint32_t i = 0; i < bits; ++i) v |= ((p[(first + i) / 8] >> ((first + i) % 8)) & 1) << i;
  return v;
}

void write_bits(uint8_t* p, uint32_t first, uint32_t bits, int v) {
  for (uint32_t i = 0; i < bits; ++i) {
    const uint32_t at = first + i;
    p[at / 8] = uint8_t((p[at / 8] & ~(1u << (at % 8))) | (uint32_t((v >> i) & 1) << (at % 8)));
  }
}

}  // namespace

PackedLayout PackedLayout::of(uint64_t rows, uint64_t cols, const Packing& packing) {
  check_packing(rows, cols, packing);
  PackedLayout l;
  l.rows = rows;
  l.cols = cols;
  l.packing = packing;
  l.block_cols = packing.five_levels ? 3 * kBlockCols : kBlockCols;
  l.field_bits = packing.five_levels ? 7 : packing.bits;
  if (rows > (uint64_t(1) << 48) || cols > (uint64_t(1) << 48)) {
    throw bad_packing("packed tensor is too large", "at most 2^48 rows and columns",
                      fmt::format("[{}, {}]", rows, cols));
  }
  l.panels = (rows + kPanelRows - 1) / kPanelRows;
  l.blocks = (cols + l.block_cols - 1) / l.block_cols;
  l.padded_cols = l.blocks * l.block_cols;
  l.group = packing.group != 0 ? packing.group : round_up(cols, kBlockCols);
  l.groups = (cols + l.group - 1) / l.group;
  l.zero_bytes = zero_bytes_of(packing);
  l.panel_bytes = l.blocks * l.field_bits * kVectorBytes;

  uint64_t end = 0, group_rows = 0, weak_rows = 0;
  if (!checked_mul(l.panels, l.groups, group_rows) ||
      !checked_mul(l.panels, packing.weak_columns, weak_rows)) {
    throw bad_packing("packed tensor's size overflows", "below 2^62 bytes", "more");
  }
  place(end, l.panels, l.panel_bytes);
  l.scales_offset = place(end, group_rows, kPanelRows * sizeof(f16));
  l.zeros_offset = place(end, group_rows, l.zero_bytes, l.zero_bytes != 0 ? kTail : 0);
  l.weak_index_offset = place(end, packing.weak_columns, sizeof(uint32_t));
  l.weak_offset = place(end, weak_rows, kPanelRows * sizeof(f16));
  l.bytes = end;
  return l;
}

int PackedView::zero(uint64_t row, uint64_t group) const {
  const Packing& p = layout_.packing;
  const uint8_t* z = zeros(row / kPanelRows) + group * layout_.zero_bytes;
  const auto lane = uint32_t(row % kPanelRows);
  switch (p.zero_mode) {
    case ZeroMode::constant:
      return p.zero;
    case ZeroMode::code_width:
      return read_bits(z, lane * layout_.zero_bytes, layout_.zero_bytes);
    case ZeroMode::i16: {
      int16_t v;
      std::memcpy(&v, z + 2 * lane, 2);
      return v;
    }
  }
  return 0;
}

float PackedView::weak_weight(uint64_t row, uint32_t i) const {
  const uint16_t bits = weak(row / kPanelRows)[i * kPanelRows + row % kPanelRows];
  return layout_.packing.weak_bf16 ? to_float(bf16{bits}) : to_float(f16{bits});
}

void PackedView::unpack_row(uint64_t row, std::span<uint8_t> out) const {
  const uint8_t* panel = codes(row / kPanelRows);
  const auto lane = uint32_t(row % kPanelRows);
  uint8_t fields[32];
  for (uint64_t b = 0; b < layout_.blocks; ++b) {
    uint8_t* to = out.data() + b * layout_.block_cols;
    BlockRow::read(panel + b * layout_.field_bits * kVectorBytes, lane, layout_.field_bits, fields);
    if (!layout_.packing.five_levels) {
      std::copy_n(fields, 32, to);
      continue;
    }
    for (uint32_t i = 0; i < 32; ++i) {  // 7 bits hold 0..127: the last digit is clamped to a code
      to[i] = fields[i] % 5;
      to[i + 32] = fields[i] / 5 % 5;
      to[i + 64] = std::min<uint8_t>(fields[i] / 25, 4);
    }
  }
}

void PackedView::dequantize_row(uint64_t row, std::span<float> out) const {
  std::vector<uint8_t> codes(layout_.padded_cols);
  unpack_row(row, codes);
  for (uint64_t g = 0; g < layout_.groups; ++g) {
    const float s = scale(row, g);
    const int z = zero(row, g);
    const uint64_t last = std::min(layout_.cols, (g + 1) * layout_.group);
    for (uint64_t k = g * layout_.group; k < last; ++k) out[k] = s * float(int(codes[k]) - z);
  }
  const auto indices = weak_indices();
  for (uint32_t i = 0; i < indices.size(); ++i) {
    const uint32_t k = indices[i];  // read once: the mapping may change under us
    if (k < layout_.cols) out[k] = weak_weight(row, i);
  }
}

PackedBuilder::PackedBuilder(uint64_t rows, uint64_t cols, const Packing& packing)
    : layout_(PackedLayout::of(rows, cols, packing)), bytes_(layout_.bytes) {}

void PackedBuilder::set_codes(uint64_t row, std::span<const uint8_t> codes) {
  const Packing& p = layout_.packing;
  const auto bad =
      std::find_if(codes.begin(), codes.end(), [&](uint8_t c) { return int(c) > p.max_code(); });
  if (codes.size() != layout_.cols || bad != codes.end()) {
    throw bad_packing(
        "codes do not fit the packing",
        fmt::format("{} codes up to {}", layout_.cols, p.max_code()),
        bad != codes.end() ? fmt::format("code {}", *bad) : fmt::format("{} codes", codes.size()));
  }
  auto* panel = reinterpret_cast<uint8_t*>(bytes_.data()) + row / kPanelRows * layout_.panel_bytes;
  const auto at = [&](uint64_t k) -> uint8_t { return k < codes.size() ? codes[k] : 0; };
  uint8_t fields[32];
  for (uint64_t b = 0; b < layout_.blocks; ++b) {
    const uint64_t k = b * layout_.block_cols;
    for (uint32_t i = 0; i < 32; ++i) {
      fields[i] =
          p.five_levels ? uint8_t(at(k + i) + 5 * at(k + i + 32) + 25 * at(k + i + 64)) : at(k + i);
    }
    BlockRow::write(panel + b * layout_.field_bits * kVectorBytes, uint32_t(row % kPanelRows),
                    layout_.field_bits, fields);
  }
}

void PackedBuilder::set_scale(uint64_t row, uint64_t group, f16 scale) {
  auto* scales = reinterpret_cast<f16*>(bytes_.data() + layout_.scales_offset);
  scales[(row / kPanelRows * layout_.groups + group) * kPanelRows + row % kPanelRows] = scale;
}

void PackedBuilder::set_zero(uint64_t row, uint64_t group, int zero) {
  const Packing& p = layout_.packing;
  auto* z = reinterpret_cast<uint8_t*>(bytes_.data() + layout_.zeros_offset) +
            (row / kPanelRows * layout_.groups + group) * layout_.zero_bytes;
  const auto lane = uint32_t(row % kPanelRows);
  const int low = p.zero_mode == ZeroMode::i16 ? INT16_MIN : 0;
  const int high = p.zero_mode == ZeroMode::i16 ? INT16_MAX : p.max_code();
  if (p.zero_mode == ZeroMode::constant ? zero != p.zero : (zero < low || zero > high)) {
    throw bad_packing("zero point does not fit the zero mode",
                      p.zero_mode == ZeroMode::constant ? std::to_string(p.zero)
                                                        : fmt::format("{}..{}", low, high),
                      std::to_string(zero));
  }
  if (p.zero_mode == ZeroMode::code_width) {
    write_bits(z, lane * layout_.zero_bytes, layout_.zero_bytes, zero);
  } else if (p.zero_mode == ZeroMode::i16) {
    const auto v = int16_t(zero);
    std::memcpy(z + 2 * lane, &v, 2);
  }
}

void PackedBuilder::set_weak_indices(std::span<const uint32_t> indices) {
  const bool ascending =
      std::adjacent_find(indices.begin(), indices.end(), std::greater_equal<>()) == indices.end();
  if (indices.size() != layout_.packing.weak_columns || !ascending ||
      (!indices.empty() && indices.back() >= layout_.cols)) {
    throw bad_packing(
        "weak columns do not fit the packing",
        fmt::format("{} ascending indices below {}", layout_.packing.weak_columns, layout_.cols),
        fmt::format("{} indices{}", indices.size(), ascending ? "" : ", not ascending"));
  }
  if (!indices.empty()) {
    std::memcpy(bytes_.data() + layout_.weak_index_offset, indices.data(), indices.size_bytes());
  }
}

void PackedBuilder::set_weak_weight(uint64_t row, uint32_t i, float weight) {
  auto* weak = reinterpret_cast<uint16_t*>(bytes_.data() + layout_.weak_offset);
  const uint64_t at =
      (row / kPanelRows * layout_.packing.weak_columns + i) * kPanelRows + row % kPanelRows;
  weak[at] = layout_.packing.weak_bf16 ? to_bf16(weight).bits : to_f16(weight).bits;
}

}  // namespace oq
