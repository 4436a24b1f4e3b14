#pragma once

#include <cstddef>
#include <cstdint>

#include "format/packed.h"

/// How a GPU holds packed weights. The file's panels of 8 rows are made for a CPU's vectors; a
/// tensor core wants 16 rows, and registers that it can multiply as they come from memory. So an
/// upload rearranges codes (repack.cu); docs/cuda.md has the arithmetic behind it.
///
/// Rows go in tiles of 16, columns in strips of 128 (w2*: three strips, 384 columns, together). One
/// tile of one unit of columns is 32 lanes x 2 F words of 32 bits, F the bits of a field: lane
/// 4 g + q holds F words of row g, then F of row g + 8. A word is two halves of 16 bits, for two
/// neighbouring columns; the F halves of one kind hold 16 fields by the file's own rule, with 16
/// bits in place of 8: field e lies whole in word e mod F at bit (e div F) F, as long as it fits,
/// and the top bits that are left make up the rest. Field e of lane 4 g + q, half h, belongs to
/// column 8 e + 2 q + h of the strip: registers e = 2 j and 2 j + 1 are those of the j-th mma
/// m16n8k16.
namespace oq::cuda {

constexpr int kTileRows = 16;
constexpr int kStripCols = 128;
constexpr int kStripFields = 16;  ///< of one lane, row and half

/// Bits that a half has beyond its whole fields.
constexpr int whole_fields(int bits) { return 16 / bits * bits; }  ///< of F halves
constexpr int spare_bits(int bits) { return 16 - 16 / bits * bits; }

/// A field becomes a number by a mask alone: bits 0..9 of a half are its mantissa, and with an
/// exponent of 0 code 2^p is the f16 number code 2^(p - 24). Fields too high for that come down by
/// one shift for the whole word. What 2^p multiplies is taken out of the activations beforehand.
constexpr int field_shift(int bits) { return 10 / bits * bits; }
constexpr int field_bit(int bits, int e) { return e / bits * bits; }
constexpr bool is_whole(int bits, int e) { return e < whole_fields(bits); }
constexpr bool is_shifted(int bits, int e) { return field_bit(bits, e) + bits > 10; }
/// p of field e.
constexpr int field_power(int bits, int e) {
  if (!is_whole(bits, e)) return 0;
  return field_bit(bits, e) - (is_shifted(bits, e) ? field_shift(bits) : 0);
}

/// Where word `word` of a lane's 2 F stands in its unit: they come as vectors of four words, and
/// of two where F is odd, each [32 lanes].
constexpr int word_place(int bits, int lane, int word) {
  const int fours = bits / 2 * 4;
  if (word < fours) return word / 4 * 128 + lane * 4 + word % 4;
  return fours * 32 + lane * 2 + (word - fours);
}

/// How zero points lie on the device, in the order of scales.
enum class Zeros { constant, u8, i16 };

/// A packed matrix in device memory; does not own it. Plain data: kernels take it by value.
struct PackedMatrix {
  int rows, cols;
  int field_bits;  ///< 2..8; 7 at w2*
  bool five_levels;
  int tiles;   ///< of 16 rows
  int units;   ///< of 128 columns, or 384
  int group;   ///< columns; a multiple of 32
  int groups;  ///< in a row
  Zeros zero_mode;
  int16_t zero;                ///< where it is constant
  const uint32_t* codes;       ///< [tile][unit][2 F x 32 words]
  const uint16_t* scales;      ///< f16 [tile][group][8][rows g and g + 8]: a lane's two together
  const void* zeros;           ///< likewise
  int weak_columns;            ///<
  bool weak_bf16;              ///<
  const uint32_t* weak_index;  ///< ascending
  const uint16_t* weak;        ///< [tile][weak column][16]
  const uint32_t* weak_mask;   ///< a bit per column, or nullptr where none is weak

  constexpr int strips() const { return five_levels ? 3 * units : units; }
};

/// Where the parts of a PackedMatrix lie in one allocation, in bytes, each 256-aligned.
struct PackedOffsets {
  uint64_t scales, zeros, weak_index, weak, weak_mask, bytes;
};
/// Throws oq::Error where a size is beyond what kernels count with (int).
PackedOffsets offsets_of(const PackedLayout& layout);

/// A tensor's matrix without its memory.
PackedMatrix shape_of(const PackedLayout& layout);
/// A tensor's matrix in memory of offsets_of(layout).bytes.
PackedMatrix matrix_of(const PackedLayout& layout, std::byte* base);

}  // namespace oq::cuda
