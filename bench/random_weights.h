#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "format/file.h"

namespace oq {

/// SplitMix64  [Steele, Lea and Flood 2014]: a number that can start anywhere, so that each piece
/// of a model has a stream of its own and who fills it does not matter.
class Rng {
 public:
  explicit Rng(uint64_t seed) : state_(seed) {}
  /// The stream of one piece.
  Rng(uint64_t seed, uint64_t piece) : state_(Rng(Rng(seed).next() ^ piece).next()) {}

  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  /// 0 .. n - 1
  uint32_t below(uint32_t n) { return uint32_t(((next() >> 32) * n) >> 32); }
  /// [0, 1)
  float uniform() { return float(next() >> 40) * 0x1p-24f; }
  /// Mean 0, deviation 1: the sum of two uniform numbers.
  float spread() { return (uniform() + uniform() - 1) * 2.44949f; }

 private:
  uint64_t state_;
};

/// Random matrices with mean 0 and deviation 1 / sqrt(cols), so that a normed input gives an output
/// of the same size. Made at the speed of memory: a few dozen random rows (or panels of rows) are
/// made the slow way, through what stores every other weight, and each column block of a matrix is
/// a copy of one of theirs in that place. Immutable: any number of threads may fill.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  /// Rows 8 * panel to 8 * panel + 7 of a tensor, as far as it has them, into its bytes `data`.
  /// PRECOND: the tensor has the kind, packing and columns that the source was made for.
  virtual void fill_panel(const TensorInfo& tensor, std::span<std::byte> data, uint64_t panel,
                          Rng& rng) const = 0;
};

/// Codes over all that the packing has (of a constant zero point: as far above it as below), zero
/// points in the middle, scales within a quarter of their mean; weak columns at equal distances;
/// padding as SPEC.md wants it.
std::unique_ptr<WeightSource> packed_source(const Packing& packing, uint64_t cols, float deviation,
                                            Rng rng);

/// Kind::f16.
std::unique_ptr<WeightSource> half_source(uint64_t cols, float deviation, Rng rng);

}  // namespace oq
