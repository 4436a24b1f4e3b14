/// Packed linears with activations on a scheme's grids (packed_tiles.h): integers up to the end of
/// a group, fp64 from there on, rounded once. Where a range lies to one side of 0, codes and zero
/// points leave large sums that all but cancel: fp32 left 3.5 % of a per-tensor output wrong, and
/// perplexity 13 % higher (docs/kernels.md). With one scale for all columns integers are fewer
/// instructions too.

#include "kernels/cpu/simd/packed_tiles.h"

namespace oq::cpu::OQ_ISA {
namespace {

struct GridInput {
  const GridRows& rows;
  const double* live_sums;
};

/// kTokens tokens on their way through kPanels panels.
template <int kPanels, int kTokens>
class GridTile {
 public:
  using L = Lanes<kPanels>;
  using Ints = typename L::Ints;
  using Floats = typename L::Floats;

  GridTile(const GridInput& x, int64_t first) : x_(x), first_(first) {
    for (int m = 0; m < kTokens; ++m) {
      codes_[m] = x.rows.row_codes(first + m);
      sums_[m] = x.rows.row_sums(first + m);
      for (Doubles& total : total_[m]) total = Doubles{};
      group_[m] = Ints{};
      group_sum_[m] = 0;
    }
  }

  template <class AnyBlock>
  inline __attribute__((always_inline)) void add_block(const AnyBlock& block, int64_t index) {
#pragma GCC unroll 8
    for (int m = 0; m < kTokens; ++m) {
      Ints sum[2];
      block.dots(codes_[m] + index * kBlockCols, sum);
      group_[m] = add(group_[m], add(sum[0], sum[1]));
      group_sum_[m] += sums_[m][index];
    }
  }

  /// total += scale * (sum of code * x - zero * sum of x)
  void end_group(Floats scales, Floats zeros) {
    OQ_ISA::Floats scale[kPanels], zero[kPanels];
    L::split(scales, scale);
    L::split(zeros, zero);
#pragma GCC unroll 8
    for (int m = 0; m < kTokens; ++m) {
      OQ_ISA::Ints group[kPanels];
      L::split(group_[m], group);
      const Doubles sum = all_doubles(group_sum_[m]);
      for (int p = 0; p < kPanels; ++p) {
        const auto live = fnmadd(doubles(zero[p]), sum, doubles(group[p]));
        total_[m][p] = fmadd(doubles(scale[p]), live, total_[m][p]);
      }
      group_[m] = Ints{};
      group_sum_[m] = 0;
    }
  }

  Floats finish(int m, int64_t first_panel) const {
    const auto row = size_t(first_ + m);
    const auto scale = all_doubles(x_.rows.scales[row]);
    const auto shift = all_doubles(x_.rows.shifts[row]);
    OQ_ISA::Floats own[kPanels];
    for (int p = 0; p < kPanels; ++p) {
      const auto live = load_doubles(x_.live_sums + (first_panel + p) * kPanelRows);
      own[p] = floats(scale * fmadd(shift, live, total_[m][p]));
    }
    return L::join(own);
  }

 private:
  const GridInput& x_;
  int64_t first_;
  const int8_t* codes_[kTokens];
  const int32_t* sums_[kTokens];
  Doubles total_[kTokens][kPanels];
  Ints group_[kTokens];
  int32_t group_sum_[kTokens];
};

}  // namespace

void packed_grid(const PackedView& w, const GridRows& x, const double* live_sums,
                 const float* weak_x, int64_t tokens, int64_t begin, int64_t end, MutableRows y) {
  run_tiles<GridTile>(w, GridInput{x, live_sums}, weak_x, tokens, begin, end, y);
}

}  // namespace oq::cpu::OQ_ISA
