#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "format/packed.h"
#include "tools/calibrate/solver/grid.h"
#include "tools/calibrate/solver/linalg.h"

namespace oq::calibrate {

/// What every method makes of one linear: all that a packed tensor stores. The weights it stands
/// for, `dequantize()`, are the packed tensor's bit for bit.
struct QuantizedLinear {
  /// Everything 0 but the scales (1) and constant zero points. `packing.weak_columns` becomes
  /// weak.size().
  QuantizedLinear(int64_t rows, int64_t cols, Packing packing, std::span<const uint32_t> weak);

  int64_t rows, cols;
  Packing packing;
  int64_t groups;                      ///< in a row
  std::vector<uint8_t> codes;          ///< [rows][cols], 0 at weak columns
  std::vector<Grid> grids;             ///< [rows][groups]
  std::vector<uint32_t> column_group;  ///< [cols]
  std::vector<uint32_t> weak;          ///< ascending
  std::vector<float> weak_weights;     ///< [rows][weak]

  const Grid& grid(int64_t row, int64_t group) const { return grids[size_t(row * groups + group)]; }
  Grid& grid(int64_t row, int64_t group) { return grids[size_t(row * groups + group)]; }

  void dequantize_row(int64_t row, std::span<float> out) const;
  Matrix dequantize() const;

  /// Throws oq::Error when a scale or weak weight is not exactly what a file stores (fp32_scales),
  /// or groups are not the file's (compacted groups).
  PackedBuilder pack() const;
};

/// x as a weak weight is stored, in f16 or bf16 (or fp32, by the options). Throws oq::Error naming
/// row and column when it is too large for that.
float weak_value(float x, const GridOptions& options, int64_t row, int64_t column);

/// Rounding to nearest: every group's grid from its own live weights; weak columns keep theirs.
/// `weak` ascending. Rows are shared out over the pool.
QuantizedLinear round_to_nearest(ThreadPool& pool, const Matrix& w, const GridOptions& options,
                                 std::span<const uint32_t> weak = {});

}  // namespace oq::calibrate
