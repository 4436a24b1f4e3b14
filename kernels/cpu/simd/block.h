#pragma once

#include "kernels/cpu/simd/unpack.h"

/// Column blocks, decoded once and multiplied with any number of tokens: products of codes with
/// int8 activations, summed exactly in integers. An architecture's dot.h gives half_dots(), its own
/// blocks where another way is better, and
///
///   kTilePanels    panels that a tile of tokens goes through side by side
///   kMostTokens    tokens of a tile: 4 or 8
namespace oq::cpu::OQ_ISA {

constexpr int kHalf = kCodeVectors / 2;  ///< vectors of codes that share an activation scale

/// A lane is a row of kPanels panels.
template <int kPanels>
struct Lanes;

template <>
struct Lanes<1> {
  using Codes = OQ_ISA::Bytes;
  using Ints = OQ_ISA::Ints;
  using Floats = OQ_ISA::Floats;

  static Codes join(const Codes* panel) { return panel[0]; }
  static Floats join(const Floats* panel) { return panel[0]; }
  static void split(Floats v, Floats* panel) { panel[0] = v; }
  static void split(Ints v, Ints* panel) { panel[0] = v; }
  static Floats all(float x) { return OQ_ISA::all(x); }
};

/// sum[h] = sum over 16 columns of code * activation, per row, of both halves of a block; kWidth
/// bits bound the codes.
template <int kWidth, int kPanels>
void half_dots(const typename Lanes<kPanels>::Codes codes[kCodeVectors], const int8_t* x,
               typename Lanes<kPanels>::Ints sum[2]);

/// A column block of `kBits`-bit codes of each panel. What is multiplied are codes - kOffset.
template <int kBits, int kPanels>
class Block {
 public:
  using L = Lanes<kPanels>;
  static constexpr int kOffset = 0;

  explicit Block(const uint8_t* const panel[kPanels]) {
    Bytes own[kPanels][kCodeVectors];
#pragma GCC unroll 2
    for (int p = 0; p < kPanels; ++p) unpack_fields<kBits>(panel[p], own[p]);
#pragma GCC unroll 8
    for (int d = 0; d < kCodeVectors; ++d) {
      const Bytes vectors[2] = {own[0][d], own[kPanels - 1][d]};
      codes_[d] = L::join(vectors);
    }
  }
  void dots(const int8_t* x, typename L::Ints sum[2]) const {
    half_dots<kBits, kPanels>(codes_, x, sum);
  }

 private:
  typename L::Codes codes_[kCodeVectors];
};

/// A w2* block of each panel: three column blocks.
template <int kPanels>
class FiveLevelBlock {
 public:
  using L = Lanes<kPanels>;
  /// One of the three.
  struct Third {
    const typename L::Codes* codes;
    void dots(const int8_t* x, typename L::Ints sum[2]) const {
      half_dots<3, kPanels>(codes, x, sum);
    }
  };

  void load(const uint8_t* const panel[kPanels]) {
    Bytes own[kPanels][3 * kCodeVectors];
    for (int p = 0; p < kPanels; ++p) unpack_five_levels(panel[p], own[p]);
    for (int d = 0; d < 3 * kCodeVectors; ++d) {
      const Bytes vectors[2] = {own[0][d], own[kPanels - 1][d]};
      codes_[d] = L::join(vectors);
    }
  }
  Third third(int64_t i) const { return {codes_ + i * kCodeVectors}; }

 private:
  typename L::Codes codes_[3 * kCodeVectors];
};

}  // namespace oq::cpu::OQ_ISA
