#pragma once

#include "tools/calibrate/solver/grid.h"
#include "tools/calibrate/solver/hessian.h"
#include "tools/calibrate/solver/quantized_linear.h"

namespace oq::calibrate {

struct GptqOptions {
  GridOptions grid = {};
  /// Grids of groups from the original weights, before any feedback. Otherwise a group's grid comes
  /// from the weights as they stand when the block that it begins in is reached. An order by
  /// score with groups is always static, because a file's groups are of original columns.
  bool static_groups = false;
  /// Codes are chosen on its grids instead of fitted ones; it is of the same shape and packing.
  /// Must outlive the call.
  const QuantizedLinear* grids_of = nullptr;
  /// Columns whose corrections to the columns behind them are applied together. Changes nothing but
  /// rounding, and when the grids of groups are taken.
  int block = 128;

  // The references' ways, for the tests that hold the solver to them.

  /// Groups count live columns in the order of visit (OWQ): such a result cannot be packed.
  bool compacted_groups = false;
  /// Columns that are rounded at once, with no correction from one to the next (AWRQ's blocksize).
  int joint = 1;
  /// AWRQ: the first `joint` columns are rounded, and the first group's grid is fitted, from the
  /// weights before they were reformulated.
  bool first_from_original = false;
};

struct GptqResult {
  QuantizedLinear linear;
  /// tr(D H D^T), H with its damping, D = start - Q with the weak columns as they absorbed the
  /// error, but not yet rounded.
  double loss = 0;
};

/// GPTQ (Frantar et al. 2022) with OWQ's weak columns (Lee et al. 2023): columns are rounded one
/// after another in the factor's order, and the error of each is made up for in all behind it, the
/// weak ones included. These come last, are never rounded to codes, and so absorb what is left.
///
/// `w` is what rows' and static groups' grids are fitted to; `start`, when given, is what gets
/// quantized (AWRQ's reformulated weights). Dead columns become 0. Works on slabs of rows, each on
/// one thread; the result does not depend on their number. Memory: a copy of a slab per thread
/// beside the result. Throws oq::Error on shapes that do not fit or weights that are not finite.
GptqResult gptq(ThreadPool& pool, const Matrix& w, const InverseFactor& factor,
                const GptqOptions& options, const Matrix* start = nullptr);

}  // namespace oq::calibrate
