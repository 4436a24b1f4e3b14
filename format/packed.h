#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "format/half.h"

namespace oq {

/// How a zero point is stored: w = scale * (code - zero) in every mode.
enum class ZeroMode : uint8_t {
  constant = 0,    ///< one number for the whole tensor (symmetric schemes)
  code_width = 1,  ///< an unsigned integer as wide as a code, per group
  i16 = 2,         ///< a signed 16-bit integer per group: a learned zero may lie outside the codes
};

/// What a packed tensor's directory entry says beyond its shape.
struct Packing {
  uint8_t bits = 4;          ///< 2..8
  bool five_levels = false;  ///< w2*: codes 0..4, three to a field of 7 bits
  ZeroMode zero_mode = ZeroMode::code_width;
  int16_t zero = 0;           ///< ZeroMode::constant's number
  uint32_t group = 0;         ///< columns that share a scale, a multiple of 32; 0 = all
  uint32_t weak_columns = 0;  ///< how many columns are kept in 16-bit floats (OWQ)
  bool weak_bf16 = false;     ///< bf16 instead of f16 weak weights

  int max_code() const { return five_levels ? 4 : (1 << bits) - 1; }

  friend bool operator==(const Packing&, const Packing&) = default;
};

constexpr uint32_t kPanelRows = 8;   ///< rows that are interleaved
constexpr uint32_t kBlockCols = 32;  ///< columns of one block of codes

/// Where everything lies inside a packed tensor. SPEC.md, "Packed tensors", has the pictures.
///
/// A tensor is four sections, each 64-aligned: codes, scales, zero points, weak columns. Rows go
/// in panels of 8; inside a panel, codes go in column blocks of 32 (96 at w2*), each
/// `field_bits * 32` bytes that a kernel reads as that many 32-byte vectors: 4-byte lane r is
/// row r, and the 8 codes that share byte c of the lane are columns c, 4 + c, ..., 28 + c.
struct PackedLayout {
  uint64_t rows = 0, cols = 0;
  Packing packing;

  uint64_t panels = 0;       ///< ceil(rows / 8)
  uint64_t blocks = 0;       ///< column blocks in a panel
  uint32_t block_cols = 0;   ///< 32, or 96 at w2*
  uint32_t field_bits = 0;   ///< packing.bits, or 7 at w2*
  uint64_t padded_cols = 0;  ///< blocks * block_cols
  uint64_t group = 0;        ///< columns in a group (cols rounded up to 32 when per row)
  uint64_t groups = 0;       ///< ceil(cols / group)
  uint32_t zero_bytes = 0;   ///< of one panel's zero points of one group

  uint64_t panel_bytes = 0;        ///< of one panel's codes
  uint64_t scales_offset = 0;      ///< f16 [panels][groups][8]
  uint64_t zeros_offset = 0;       ///< [panels][groups][zero_bytes]
  uint64_t weak_index_offset = 0;  ///< u32 [weak_columns], ascending
  uint64_t weak_offset = 0;        ///< f16 or bf16 [panels][weak_columns][8]
  uint64_t bytes = 0;              ///< of the whole tensor

  /// Throws oq::Error when the packing is not one of the format's, or a size overflows.
  static PackedLayout of(uint64_t rows, uint64_t cols, const Packing& packing);
};

/// A packed tensor in memory, for reading; does not own its bytes. Element access is checked by
/// the layout alone: any bytes are safe to read, whatever they hold.
class PackedView {
 public:
  /// PRECOND: base is 8-aligned and has layout.bytes bytes.
  PackedView(const PackedLayout& layout, const std::byte* base) : layout_(layout), base_(base) {}

  const PackedLayout& layout() const { return layout_; }

  const uint8_t* codes(uint64_t panel) const {
    return reinterpret_cast<const uint8_t*>(base_) + panel * layout_.panel_bytes;
  }
  /// f16 [groups][8]
  const f16* scales(uint64_t panel) const {
    return reinterpret_cast<const f16*>(base_ + layout_.scales_offset) +
           panel * layout_.groups * kPanelRows;
  }
  /// [groups][zero_bytes]; at least 8 readable bytes follow the last.
  const uint8_t* zeros(uint64_t panel) const {
    return reinterpret_cast<const uint8_t*>(base_ + layout_.zeros_offset) +
           panel * layout_.groups * layout_.zero_bytes;
  }
  std::span<const uint32_t> weak_indices() const {
    return {reinterpret_cast<const uint32_t*>(base_ + layout_.weak_index_offset),
            layout_.packing.weak_columns};
  }
  /// f16 or bf16 bits, [weak_columns][8]
  const uint16_t* weak(uint64_t panel) const {
    return reinterpret_cast<const uint16_t*>(base_ + layout_.weak_offset) +
           panel * layout_.packing.weak_columns * kPanelRows;
  }

  float scale(uint64_t row, uint64_t group) const {
    return to_float(scales(row / kPanelRows)[group * kPanelRows + row % kPanelRows]);
  }
  int zero(uint64_t row, uint64_t group) const;
  float weak_weight(uint64_t row, uint32_t i) const;

  /// The codes of one row: out has padded_cols elements.
  void unpack_row(uint64_t row, std::span<uint8_t> out) const;

  /// scale * (code - zero), weak columns in place: out has cols elements. The slow truth that
  /// every kernel is held to.
  void dequantize_row(uint64_t row, std::span<float> out) const;

 private:
  PackedLayout layout_;
  const std::byte* base_;
};

/// Fills a packed tensor, row by row in any order, in memory of its own.
class PackedBuilder {
 public:
  PackedBuilder(uint64_t rows, uint64_t cols, const Packing& packing);

  const PackedLayout& layout() const { return layout_; }
  std::span<const std::byte> bytes() const { return bytes_; }
  PackedView view() const { return {layout_, bytes_.data()}; }

  /// Codes of one row, one per column; those of weak columns must be 0. Throws on a code beyond
  /// the packing's largest.
  void set_codes(uint64_t row, std::span<const uint8_t> codes);
  void set_scale(uint64_t row, uint64_t group, f16 scale);
  /// Throws when the zero point does not fit the packing's zero mode.
  void set_zero(uint64_t row, uint64_t group, int zero);
  /// Ascending, below cols.
  void set_weak_indices(std::span<const uint32_t> indices);
  void set_weak_weight(uint64_t row, uint32_t i, float weight);

 private:
  PackedLayout layout_;
  std::vector<std::byte> bytes_;
};

}  // namespace oq
