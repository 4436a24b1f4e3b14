#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "tools/calibrate/solver/grid.h"
#include "tools/calibrate/solver/linalg.h"

namespace oq::calibrate {

/// OWQ's sensitivity of each column (Lee et al. 2023): H_jj |W_:j - Q(W)_:j|^2 with H not damped
/// and Q rounding to nearest on a grid per whole row (group_steps scales under mse).
std::vector<float> sensitivity(ThreadPool& pool, const Matrix& w,
                               std::span<const float> hessian_diagonal, const GridOptions& options);

/// The `count` columns with the largest score, ascending; of equal scores the first.
std::vector<uint32_t> largest(std::span<const float> score, uint32_t count);

/// The linears of one type (q, up, ...) in a block.
struct LinearType {
  std::string name;
  int64_t rows = 0, cols = 0;  ///< outputs, inputs
  int64_t count = 1;           ///< linears of the type in the block: the number of experts
  bool chosen = true;          ///< may have weak columns
  double ratio = 1;            ///< the paper's formula only: d^2 / (rows * cols), at most 1
};

/// Weak columns of each type for `target` bits per weight, codes being `bits` wide (7/3 for w2*)
/// and weak weights counting 16; indices, scales and zero points are not counted. The budget goes
/// to the chosen types in equal parts, of which each linear takes
///
///   n = (target - bits) / (16 - bits) * P / (m * count * rows)
///
/// P the weights of the block's linears, m the number of chosen types: the paper's rule, with the
/// block's true size in place of 12 d^2. Rounded half to even, then up to the next even number, at
/// most cols. Throws oq::Error unless bits <= target < bits + 1.
std::vector<uint32_t> weak_counts(std::span<const LinearType> types, double bits, double target);

/// The paper's own count, n = cols * ratio * 12 / (16 - bits) * (target - bits) / m: right where a
/// block has 12 d^2 weights, d = cols of the attention's linears.
std::vector<uint32_t> weak_counts_paper(std::span<const LinearType> types, double bits,
                                        double target);

/// Bits per weight of a block with these counts, by the same rule of counting.
double effective_bits(std::span<const LinearType> types, std::span<const uint32_t> counts,
                      double bits);

}  // namespace oq::calibrate
