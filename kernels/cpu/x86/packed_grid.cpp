/// Packed linears with activations on a scheme's grids (packed_tiles.h): integers up to the end of
/// a group, fp64 from there on, rounded once. Where a range lies to one side of 0, codes and zero
/// points leave large sums that all but cancel: fp32 left 3.5 % of a per-tensor output wrong, and
/// perplexity 13 % higher (docs/kernels.md). With one scale for all columns integers are fewer
/// instructions too.

#include "kernels/cpu/x86/packed_tiles.h"

namespace oq::cpu::OQ_ISA {
namespace {

/// Of the 8 rows of a panel.
struct Doubles {
#if defined(__AVX512VL__)
  __m512d v;

  static Doubles zero() { return {_mm512_setzero_pd()}; }
  static Doubles all(double x) { return {_mm512_set1_pd(x)}; }
  static Doubles load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Doubles of(__m256i x) { return {_mm512_cvtepi32_pd(x)}; }
  static Doubles of(__m256 x) { return {_mm512_cvtps_pd(x)}; }
  static Doubles mul(Doubles a, Doubles b) { return {_mm512_mul_pd(a.v, b.v)}; }
  static Doubles fmadd(Doubles a, Doubles b, Doubles c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
  static Doubles fnmadd(Doubles a, Doubles b, Doubles c) {
    return {_mm512_fnmadd_pd(a.v, b.v, c.v)};
  }
  __m256 floats() const { return _mm512_cvtpd_ps(v); }
#else
  __m256d low, high;

  static Doubles zero() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
  static Doubles all(double x) { return {_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
  static Doubles load(const double* p) { return {_mm256_loadu_pd(p), _mm256_loadu_pd(p + 4)}; }
  static Doubles of(__m256i x) {
    return {_mm256_cvtepi32_pd(_mm256_castsi256_si128(x)),
            _mm256_cvtepi32_pd(_mm256_extracti128_si256(x, 1))};
  }
  static Doubles of(__m256 x) {
    return {_mm256_cvtps_pd(_mm256_castps256_ps128(x)),
            _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
  }
  static Doubles mul(Doubles a, Doubles b) {
    return {_mm256_mul_pd(a.low, b.low), _mm256_mul_pd(a.high, b.high)};
  }
  static Doubles fmadd(Doubles a, Doubles b, Doubles c) {
    return {_mm256_fmadd_pd(a.low, b.low, c.low), _mm256_fmadd_pd(a.high, b.high, c.high)};
  }
  static Doubles fnmadd(Doubles a, Doubles b, Doubles c) {
    return {_mm256_fnmadd_pd(a.low, b.low, c.low), _mm256_fnmadd_pd(a.high, b.high, c.high)};
  }
  __m256 floats() const {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(low)), _mm256_cvtpd_ps(high),
                                1);
  }
#endif
};

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
      for (Doubles& total : total_[m]) total = Doubles::zero();
      group_[m] = L::zero_ints();
      group_sum_[m] = 0;
    }
  }

  template <class AnyBlock>
  inline __attribute__((always_inline)) void add_block(const AnyBlock& block, int64_t index) {
#pragma GCC unroll 8
    for (int m = 0; m < kTokens; ++m) {
      Ints sum[2];
      block.dots(codes_[m] + index * kBlockCols, sum);
      group_[m] = L::add(group_[m], L::add(sum[0], sum[1]));
      group_sum_[m] += sums_[m][index];
    }
  }

  /// total += scale * (sum of code * x - zero * sum of x)
  void end_group(Floats scales, Floats zeros) {
    __m256 scale[kPanels], zero[kPanels];
    L::split(scales, scale);
    L::split(zeros, zero);
#pragma GCC unroll 8
    for (int m = 0; m < kTokens; ++m) {
      __m256i group[kPanels];
      L::split(group_[m], group);
      const Doubles sum = Doubles::all(group_sum_[m]);
      for (int p = 0; p < kPanels; ++p) {
        const auto live = Doubles::fnmadd(Doubles::of(zero[p]), sum, Doubles::of(group[p]));
        total_[m][p] = Doubles::fmadd(Doubles::of(scale[p]), live, total_[m][p]);
      }
      group_[m] = L::zero_ints();
      group_sum_[m] = 0;
    }
  }

  Floats finish(int m, int64_t first_panel) const {
    const auto row = size_t(first_ + m);
    const auto scale = Doubles::all(x_.rows.scales[row]);
    const auto shift = Doubles::all(x_.rows.shifts[row]);
    __m256 own[kPanels];
    for (int p = 0; p < kPanels; ++p) {
      const auto live = Doubles::load(x_.live_sums + (first_panel + p) * kPanelRows);
      own[p] = Doubles::mul(scale, Doubles::fmadd(shift, live, total_[m][p])).floats();
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
