#pragma once

#include "kernels/cuda/quantize_row.h"

/// A row's codes as an engine wants them (QuantizedRows). A warp packs a strip of 128 columns at a
/// time, a lane four of them: into one word of bytes, or, by votes, into bits of planes. Sums of 32
/// columns come with it.
namespace oq::cuda {

/// Columns that byte b of word 8 q + r of a strip holds.
OQ_DEVICE int column_of(int lane, int b) {
  return 8 * (lane % 8) + 2 * (lane / 8) + b / 2 + 64 * (b % 2);
}

/// Sums of 32 columns, of all lanes: those of part b / 2 x 2 + r / 4.
OQ_DEVICE void store_sums(int32_t* to, const uint32_t codes[4], const bool live[4]) {
  const int lane = lane_id();
  OQ_UNROLL
  for (int high = 0; high < 2; ++high) {  // columns from 64 on are bytes 1 and 3
    int32_t sum = 0;
    OQ_UNROLL
    for (int b = high; b < 4; b += 2) sum += int32_t(codes[b]) + (live[b] ? 1 << 16 : 0);
    OQ_UNROLL
    for (int mask : {1, 2, 8, 16}) sum += shuffle_xor(sum, mask);
    if (lane % 4 == 0 && lane < 8) to[2 * high + lane / 4] = sum;
  }
}

/// Word 4 i + q of planes: bit 16 h + e is column 8 e + 2 q + h, which lane 8 q + e % 8 holds as
/// byte 2 h + e / 8.
OQ_DEVICE void store_planes(uint32_t* to, int planes, const uint32_t codes[4]) {
  const int lane = lane_id();
  for (int i = 0; i < planes; ++i) {
    uint32_t word = 0;
    OQ_UNROLL
    for (int b = 0; b < 4; ++b) {
      const uint32_t votes = ballot((codes[b] >> i & 1u) != 0);
      word |= (votes >> (8 * (lane % 4)) & 0xFFu) << (16 * (b / 2) + 8 * (b % 2));
    }
    if (lane < 4) to[4 * i + lane] = word;
  }
}

/// Row i of a form: codes, their sums, the grid, and what meets weak columns of `w`.
OQ_DEVICE void pack_row(Engine engine, const InputArgs& in, const RowStats& s, const SourceRow& row,
                        const PackedMatrix& w, const QuantizedRows& to, int form, int i) {
  const Grid8 grid(s, in.bits);
  const int64_t place = int64_t(form) * to.room + i;
  if (thread_id() == 0) to.grids[place] = grid.grid;
  const int strips = w.strips(), planes = activation_planes(in.bits);
  const int words = code_words(engine, in.bits);
  for (int strip = warp_id(); strip < strips; strip += kWarps) {
    uint32_t codes[4];
    bool live[4];
    OQ_UNROLL
    for (int b = 0; b < 4; ++b) {
      const int k = strip * kStripCols + column_of(lane_id(), b);
      live[b] = k < row.cols && !row.is_weak(k);
      codes[b] = live[b] ? uint32_t(grid.code(normed(in.norm, s, row.x, k))) : 0;
    }
    const int64_t at = (int64_t(form) * strips + strip) * to.room + i;
    store_sums(to.sums + at * 4, codes, live);
    if (engine == Engine::planes) {
      store_planes(to.codes + at * words, planes, codes);
    } else {
      to.codes[at * words + lane_id()] = codes[0] | codes[1] << 8 | codes[2] << 16 | codes[3] << 24;
    }
  }
  for (int j = thread_id(); j < w.weak_columns; j += kThreads) {
    to.weak[place * to.weak_room + j] = normed(in.norm, s, row.x, int(w.weak_index[j]));
  }
}

}  // namespace oq::cuda
