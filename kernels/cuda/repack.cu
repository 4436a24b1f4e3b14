/// A packed tensor from the file's panels (format/SPEC.md) into tiles (layout.h), on the device,
/// so that an upload is one copy of the file's bytes.
///
/// Regime: once, at loading. Work split: a thread makes one word of codes, or what belongs to one
///   row and group, or to one row and weak column.
/// Bound: reads of single bytes, 32 / F of them a word. Measured: not measured.

#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels.h"

namespace oq::cuda {
namespace {

constexpr int kThreads = 256;

struct RepackArgs {
  const uint8_t* file;
  int64_t panel_bytes, scales_offset, zeros_offset, weak_index_offset, weak_offset;
  int panels, zero_bytes, blocks;
  PackedMatrix to;
};

OQ_DEVICE int64_t thread() { return int64_t(block_x()) * kThreads + thread_id(); }

OQ_DEVICE bool is_weak(const PackedMatrix& m, int col) {
  return m.weak_columns > 0 && (m.weak_mask[col / 32] >> (col % 32) & 1u) != 0;
}

/// SPEC.md, "Column blocks": a code of the file; 0 in padding and weak columns, as the file should
/// have it: sums of codes rely on that. PRECOND: the mask of weak columns is there.
OQ_DEVICE uint32_t file_code(const RepackArgs& a, int row, int col) {
  const int bits = a.to.field_bits, block_cols = a.to.five_levels ? 96 : 32;
  if (row / 8 >= a.panels || col >= a.to.cols || is_weak(a.to, col)) return 0;
  const uint8_t* block = a.file + row / 8 * a.panel_bytes + int64_t(col / block_cols) * bits * 32;
  const int field = col % block_cols % 32, third = col % block_cols / 32;
  const uint8_t* bytes = block + row % 8 * 4 + field % 4;  // byte j of the field's eight: 32 j
  const int d = field / 4, direct = 8 / bits * bits, left = 8 - direct;
  uint32_t value = 0;
  if (d < direct) {
    value = uint32_t(bytes[32 * (d % bits)]) >> (d / bits * bits);
  } else {
    for (int b = 0; b < bits; ++b) {
      const int at = (d - direct) * bits + b;
      value |= (uint32_t(bytes[32 * (at / left)]) >> (direct + at % left) & 1u) << b;
    }
  }
  value &= (1u << bits) - 1;
  if (!a.to.five_levels) return value;
  const uint32_t digit = third == 0 ? value % 5 : third == 1 ? value / 5 % 5 : value / 25;
  return digit < 4 ? digit : 4;
}

/// The field of a lane's row and half: a code, or three.
OQ_DEVICE uint32_t field_of(const RepackArgs& a, int row, int unit, int e, int q, int half) {
  const int in_strip = 8 * e + 2 * q + half;
  if (!a.to.five_levels) return file_code(a, row, unit * kStripCols + in_strip);
  const int col = unit * 3 * kStripCols + in_strip;
  return file_code(a, row, col) + 5 * file_code(a, row, col + kStripCols) +
         25 * file_code(a, row, col + 2 * kStripCols);
}

/// Word w of F of one row's fields, one half of it.
OQ_DEVICE uint32_t half_word(const RepackArgs& a, int row, int unit, int w, int q, int half) {
  const int bits = a.to.field_bits, whole = whole_fields(bits), spare = spare_bits(bits);
  uint32_t value = 0;
  for (int e = w; e < whole; e += bits) {
    value |= field_of(a, row, unit, e, q, half) << field_bit(bits, e);
  }
  for (int b = 0; b < spare; ++b) {
    const int at = w * spare + b;  // of the stream of fields that have no place of their own
    const uint32_t field = field_of(a, row, unit, whole + at / bits, q, half);
    value |= (field >> (at % bits) & 1u) << (16 - spare + b);
  }
  return value;
}

__global__ void repack_codes(RepackArgs a) {
  const int bits = a.to.field_bits, words = 2 * bits * 32;
  const int64_t at = thread();
  if (at >= int64_t(a.to.tiles) * a.to.units * words) return;
  const int w = int(at % (2 * bits)), lane = int(at / (2 * bits) % 32);
  const int64_t block = at / words;
  const int unit = int(block % a.to.units), tile = int(block / a.to.units);
  const int row = tile * kTileRows + lane / 4 + w / bits * 8;
  const uint32_t low = half_word(a, row, unit, w % bits, lane % 4, 0);
  const uint32_t high = half_word(a, row, unit, w % bits, lane % 4, 1);
  const_cast<uint32_t*>(a.to.codes)[block * words + word_place(bits, lane, w)] = low | high << 16;
}

/// Where a row's scale and zero point of a group go: a lane's two rows together.
OQ_DEVICE int64_t group_place(const PackedMatrix& m, int row, int group) {
  const int r = row % kTileRows;
  return (int64_t(row / kTileRows) * m.groups + group) * kTileRows + r % 8 * 2 + r / 8;
}

OQ_DEVICE int file_zero(const RepackArgs& a, int row, int group) {
  const uint8_t* zeros =
      a.file + a.zeros_offset + (int64_t(row / 8) * a.to.groups + group) * a.zero_bytes;
  if (a.to.zero_mode == Zeros::i16) {
    return int16_t(uint16_t(zeros[row % 8 * 2] | zeros[row % 8 * 2 + 1] << 8));
  }
  const int bits = a.to.five_levels ? 3 : a.to.field_bits, from = row % 8 * bits;
  const int both = zeros[from / 8] | zeros[from / 8 + 1] << 8;  // 8 bytes follow the last
  return both >> (from % 8) & ((1 << bits) - 1);
}

__global__ void repack_groups(RepackArgs a) {
  const int64_t at = thread();
  const int rows = a.to.tiles * kTileRows;
  if (at >= int64_t(rows) * a.to.groups) return;
  const int row = int(at % rows), group = int(at / rows);
  const bool there = row / 8 < a.panels;
  const auto* scales = reinterpret_cast<const uint16_t*>(a.file + a.scales_offset);
  const int64_t from = (int64_t(row / 8) * a.to.groups + group) * 8 + row % 8;
  const int64_t to = group_place(a.to, row, group);
  const_cast<uint16_t*>(a.to.scales)[to] = there ? scales[from] : uint16_t(0);
  if (a.to.zero_mode == Zeros::constant) return;
  const int zero = there ? file_zero(a, row, group) : 0;
  if (a.to.zero_mode == Zeros::u8) {
    static_cast<uint8_t*>(const_cast<void*>(a.to.zeros))[to] = uint8_t(zero);
  } else {
    static_cast<int16_t*>(const_cast<void*>(a.to.zeros))[to] = int16_t(zero);
  }
}

__global__ void repack_weak(RepackArgs a) {
  const int64_t at = thread();
  const int rows = a.to.tiles * kTileRows, n = a.to.weak_columns;
  if (at >= int64_t(rows) * n) return;
  const int row = int(at % rows), i = int(at / rows);
  const auto* weak = reinterpret_cast<const uint16_t*>(a.file + a.weak_offset);
  const uint16_t weight =
      row / 8 < a.panels ? weak[(int64_t(row / 8) * n + i) * 8 + row % 8] : uint16_t(0);
  const_cast<uint16_t*>(
      a.to.weak)[(int64_t(row / kTileRows) * n + i) * kTileRows + row % kTileRows] = weight;
}

/// Indices, no larger than the last column whatever the file says, and their bits: a thread makes
/// a word of bits.
__global__ void repack_weak_columns(RepackArgs a) {
  const auto* from = reinterpret_cast<const uint32_t*>(a.file + a.weak_index_offset);
  const int64_t at = thread();
  const auto index = [&](int i) {
    return from[i] < uint32_t(a.to.cols) ? from[i] : uint32_t(a.to.cols - 1);
  };
  if (at < a.to.weak_columns) const_cast<uint32_t*>(a.to.weak_index)[at] = index(int(at));
  if (at >= int64_t(a.to.strips()) * kStripCols / 32) return;
  uint32_t bits = 0;
  for (int i = 0; i < a.to.weak_columns; ++i) {
    if (index(i) / 32 == at) bits |= 1u << index(i) % 32;
  }
  const_cast<uint32_t*>(a.to.weak_mask)[at] = bits;
}

Grid grid_of(int64_t threads) {
  return {.x = int((threads + kThreads - 1) / kThreads), .threads = kThreads};
}

}  // namespace

void start_repack(Stream& stream, const PackedLayout& l, const std::byte* file,
                  const PackedMatrix& to) {
  const RepackArgs a{.file = reinterpret_cast<const uint8_t*>(file),
                     .panel_bytes = int64_t(l.panel_bytes),
                     .scales_offset = int64_t(l.scales_offset),
                     .zeros_offset = int64_t(l.zeros_offset),
                     .weak_index_offset = int64_t(l.weak_index_offset),
                     .weak_offset = int64_t(l.weak_offset),
                     .panels = int(l.panels),
                     .zero_bytes = int(l.zero_bytes),
                     .blocks = int(l.blocks),
                     .to = to};
  const int64_t rows = int64_t(to.tiles) * kTileRows;
  const int64_t words = int64_t(to.tiles) * to.units * 2 * to.field_bits * 32;
  if (to.weak_columns > 0) {
    const int64_t mask_words = int64_t(to.strips()) * kStripCols / 32;
    launch(stream, "repack_weak_columns", repack_weak_columns,
           grid_of(mask_words > to.weak_columns ? mask_words : to.weak_columns), a);
    launch(stream, "repack_weak", repack_weak, grid_of(rows * to.weak_columns), a);
  }
  launch(stream, "repack_codes", repack_codes, grid_of(words), a);
  launch(stream, "repack_groups", repack_groups, grid_of(rows * to.groups), a);
}

}  // namespace oq::cuda
