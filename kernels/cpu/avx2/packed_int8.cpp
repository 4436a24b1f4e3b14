/// Packed linears with int8 activations.
///
/// Regime: decode (1 token) and prefill (tiles of 4 tokens). Layout: panels of 8 rows, column
/// blocks of 32 (SPEC.md). Work split: the caller gives panels; a panel is read once per tile of
/// tokens, front to back. A lane is a row, so no horizontal sums; activations are broadcast four
/// at a time and multiplied by `maddubs` (unsigned codes x signed activations into int16). Half a
/// block shares an activation scale: 4 `maddubs` per scale and lane.
/// Bound: memory at 4 bits and more, instructions below. Measured: docs/kernels.md. Lost there:
/// plain rows with one dot product each (0.6 of the speed at 4 bits), 16-row panels (equal).

#include <algorithm>

#include "kernels/cpu/avx2/unpack.h"

namespace oq::cpu::avx2 {
namespace {

constexpr int kHalf = kCodeVectors / 2;  ///< vectors of codes that share an activation scale

/// How many products of `maddubs` an int16 holds: each is at most 2 * (2^bits - 1) * 128 in
/// magnitude. 5 bits: 4 * 2 * 31 * 128 = 31744 < 32768. 7 bits: 2 * 127 * 128 = 32512, just one.
constexpr int int16_room(int bits) {
  const int room = 32767 / (2 * ((1 << bits) - 1) * 128);
  return room < kHalf ? room : kHalf;
}
static_assert(int16_room(5) == 4 && int16_room(6) == 2 && int16_room(7) == 1);

/// sum over 16 columns of code * activation, per row. kWidth bits bound the codes.
template <int kWidth>
inline __attribute__((always_inline)) __m256i half_dot(const __m256i codes[kHalf],
                                                       const int8_t* x) {
  constexpr int kRoom = int16_room(kWidth);
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int first = 0; first < kHalf; first += kRoom) {
    __m256i pairs = _mm256_maddubs_epi16(codes[first], broadcast4(x + 4 * first));
#pragma GCC unroll 4
    for (int d = first + 1; d < first + kRoom; ++d) {
      pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(codes[d], broadcast4(x + 4 * d)));
    }
    const __m256i wide = _mm256_madd_epi16(pairs, ones);
    sum = first == 0 ? wide : _mm256_add_epi32(sum, wide);
  }
  return sum;
}

/// A column block of `kBits`-bit codes, decoded once and multiplied with any number of tokens.
template <int kBits>
struct Block {
  __m256i codes[kCodeVectors];

  explicit Block(const uint8_t* p) { unpack_fields<kBits>(p, codes); }
  /// Columns 16 half .. 16 half + 15; x is the block's first activation.
  __m256i dot(const int8_t* x, int half) const {
    return half_dot<kBits>(codes + half * kHalf, x + half * kActCols);
  }
};

/// 8-bit codes times activations overflow int16 in one step: the two nibbles go separately.
template <>
struct Block<8> {
  __m256i low[kCodeVectors], high[kCodeVectors];

  explicit Block(const uint8_t* p) {
    const __m256i nibble = _mm256_set1_epi8(15);
    for (int d = 0; d < kCodeVectors; ++d) {
      const __m256i v = load(p + 32 * d);
      low[d] = _mm256_and_si256(v, nibble);
      high[d] = _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble);
    }
  }
  __m256i dot(const int8_t* x, int half) const {
    const int8_t* from = x + half * kActCols;
    const __m256i tops = half_dot<4>(high + half * kHalf, from);
    return _mm256_add_epi32(half_dot<4>(low + half * kHalf, from), _mm256_slli_epi32(tops, 4));
  }
};

/// The tokens of a tile while they go through one panel.
template <int kTokens>
class Tile {
 public:
  Tile(const Int8Rows& x, int64_t first) {
    for (int m = 0; m < kTokens; ++m) {
      codes_[m] = x.row_codes(first + m);
      scales_[m] = x.row_scales(first + m);
      sums_[m] = x.row_sums(first + m);
      total[m] = _mm256_setzero_ps();
      group_[m] = _mm256_setzero_ps();
      group_sum_[m] = 0;
    }
  }

  template <class AnyBlock>
  inline __attribute__((always_inline)) void add_block(const AnyBlock& block, int64_t index) {
#pragma GCC unroll 8
    for (int m = 0; m < kTokens; ++m) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m256 dot = _mm256_cvtepi32_ps(block.dot(codes_[m] + index * kBlockCols, half));
        group_[m] = _mm256_fmadd_ps(dot, _mm256_set1_ps(scales_[m][2 * index + half]), group_[m]);
      }
      group_sum_[m] += sums_[m][index];
    }
  }

  /// total += scale * (sum of code * x - zero * sum of x)
  void end_group(__m256 scale, __m256 zero) {
#pragma GCC unroll 8
    for (int m = 0; m < kTokens; ++m) {
      const __m256 live = _mm256_fnmadd_ps(zero, _mm256_set1_ps(group_sum_[m]), group_[m]);
      total[m] = _mm256_fmadd_ps(scale, live, total[m]);
      group_[m] = _mm256_setzero_ps();
      group_sum_[m] = 0;
    }
  }

  __m256 total[kTokens];

 private:
  const int8_t* codes_[kTokens];
  const float* scales_[kTokens];
  const float* sums_[kTokens];
  __m256 group_[kTokens];
  float group_sum_[kTokens];
};

/// The cache lines of a block 4 KiB ahead: a mapped file lies on small pages, and the hardware's
/// own prefetchers stop at the end of each. Worth 9 to 12 % in decode. A prefetch never faults.
template <int kBytes>
inline void prefetch(const uint8_t* block) {
  const auto ahead = reinterpret_cast<uintptr_t>(block) + 4096;
  for (int line = 0; line < kBytes;
       line += 64) {  // an address, perhaps of no object: not a pointer
    _mm_prefetch(reinterpret_cast<const char*>(ahead + uintptr_t(line)), _MM_HINT_T0);
  }
}

template <int kBits, int kTokens>
void panel(const PackedView& w, int64_t p, Tile<kTokens>& tile) {
  const PackedLayout& l = w.layout();
  const uint8_t* codes = w.codes(uint64_t(p));
  const f16* scales = w.scales(uint64_t(p));
  const ZeroReader zeros(w, p);
  const auto group_blocks = int64_t(l.group / kBlockCols);
  const auto blocks = int64_t(l.blocks);
  for (int64_t g = 0, b = 0; b < blocks; ++g) {
    const int64_t last = std::min(blocks, b + group_blocks);
    for (; b < last; ++b) {
      if constexpr (kTokens == 1) prefetch<32 * kBits>(codes);
      tile.add_block(Block<kBits>(codes), b);
      codes += 32 * kBits;
    }
    tile.end_group(load_floats(scales + g * kPanelRows), zeros(g));
  }
}

/// One third of a w2* block, as `Tile` wants it.
struct FiveLevelPart {
  const __m256i* codes;
  __m256i dot(const int8_t* x, int half) const {
    return half_dot<3>(codes + half * kHalf, x + half * kActCols);
  }
};

template <int kTokens>
void panel_five_levels(const PackedView& w, int64_t p, Tile<kTokens>& tile) {
  const PackedLayout& l = w.layout();
  const f16* scales = w.scales(uint64_t(p));
  const ZeroReader zeros(w, p);
  const auto group_blocks = int64_t(l.group / kBlockCols);
  const auto blocks = int64_t((l.cols + kBlockCols - 1) / kBlockCols);
  __m256i codes[3 * kCodeVectors];
  for (int64_t b = 0; b < blocks; ++b) {
    if (b % 3 == 0) unpack_five_levels(w.codes(uint64_t(p)) + b / 3 * 7 * 32, codes);
    tile.add_block(FiveLevelPart{codes + b % 3 * kCodeVectors}, b);
    if ((b + 1) % group_blocks == 0 || b + 1 == blocks) {
      const int64_t g = b / group_blocks;
      tile.end_group(load_floats(scales + g * kPanelRows), zeros(g));
    }
  }
}

using PanelsFn = void (*)(const PackedView&, const Int8Rows&, const float*, int64_t first_token,
                          int64_t begin, int64_t end, MutableRows);

/// kBits 0 stands for w2*.
template <int kBits, int kTokens>
void panels(const PackedView& w, const Int8Rows& x, const float* weak_x, int64_t first_token,
            int64_t begin, int64_t end, MutableRows y) {
  for (int64_t p = begin; p < end; ++p) {
    Tile<kTokens> tile(x, first_token);
    if constexpr (kBits == 0) {
      panel_five_levels<kTokens>(w, p, tile);
    } else {
      panel<kBits, kTokens>(w, p, tile);
    }
    add_weak<kTokens>(w, p, weak_x + first_token * w.layout().packing.weak_columns, tile.total);
    for (int m = 0; m < kTokens; ++m) store_panel(w, p, tile.total[m], y.row(first_token + m));
  }
}

constexpr int kTile = 4;

template <int kTokens>
constexpr PanelsFn kPanels[9] = {panels<0, kTokens>, nullptr,
                                 panels<2, kTokens>, panels<3, kTokens>,
                                 panels<4, kTokens>, panels<5, kTokens>,
                                 panels<6, kTokens>, panels<7, kTokens>,
                                 panels<8, kTokens>};

}  // namespace

void packed_int8(const PackedView& w, const Int8Rows& x, const float* weak_x, int64_t tokens,
                 int64_t begin, int64_t end, MutableRows y) {
  const Packing& packing = w.layout().packing;
  const int row = packing.five_levels ? 0 : packing.bits;
  int64_t m = 0;
  for (; m + kTile <= tokens; m += kTile) kPanels<kTile>[row](w, x, weak_x, m, begin, end, y);
  for (; m < tokens; ++m) kPanels<1>[row](w, x, weak_x, m, begin, end, y);
}

}  // namespace oq::cpu::avx2
