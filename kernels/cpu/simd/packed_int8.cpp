/// Packed linears with int8 activations, one scale for each 16 columns (packed_tiles.h).

#include "kernels/cpu/simd/packed_tiles.h"

namespace oq::cpu::OQ_ISA {
namespace {

/// kTokens tokens on their way through kPanels panels: half a block's sum is scaled at once.
template <int kPanels, int kTokens>
class Int8Tile {
 public:
  using L = Lanes<kPanels>;
  using Floats = typename L::Floats;

  Int8Tile(const Int8Rows& x, int64_t first) {
    for (int m = 0; m < kTokens; ++m) {
      codes_[m] = x.row_codes(first + m);
      scales_[m] = x.row_scales(first + m);
      sums_[m] = x.row_sums(first + m);
      total_[m] = group_[m] = Floats{};
      group_sum_[m] = 0;
    }
  }

  template <class AnyBlock>
  inline __attribute__((always_inline)) void add_block(const AnyBlock& block, int64_t index) {
#pragma GCC unroll 8
    for (int m = 0; m < kTokens; ++m) {
      typename L::Ints sum[2];
      block.dots(codes_[m] + index * kBlockCols, sum);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const Floats scale = L::all(scales_[m][2 * index + half]);
        group_[m] = fmadd(floats(sum[half]), scale, group_[m]);
      }
      group_sum_[m] += sums_[m][index];
    }
  }

  /// total += scale * (sum of code * x - zero * sum of x)
  void end_group(Floats scale, Floats zero) {
#pragma GCC unroll 8
    for (int m = 0; m < kTokens; ++m) {
      const Floats live = fnmadd(zero, L::all(group_sum_[m]), group_[m]);
      total_[m] = fmadd(scale, live, total_[m]);
      group_[m] = Floats{};
      group_sum_[m] = 0;
    }
  }

  Floats finish(int m, int64_t) const { return total_[m]; }

 private:
  const int8_t* codes_[kTokens];
  const float* scales_[kTokens];
  const float* sums_[kTokens];
  Floats total_[kTokens];
  Floats group_[kTokens];
  float group_sum_[kTokens];
};

}  // namespace

void packed_int8(const PackedView& w, const Int8Rows& x, const float* weak_x, int64_t tokens,
                 int64_t begin, int64_t end, MutableRows y) {
  run_tiles<Int8Tile>(w, x, weak_x, tokens, begin, end, y);
}

}  // namespace oq::cpu::OQ_ISA
