#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "format/half.h"
#include "format/packed.h"
#include "kernels/activation.h"
#include "kernels/activation_grid.h"

/// The CPU's kernels: one table of functions per instruction set, chosen at run time. Every
/// function works on a range of its output, so that the caller decides who computes what; what it
/// writes does not depend on the range, nor on how many tokens go along, bit for bit.
namespace oq::cpu {

/// Columns that share one activation scale: half a column block. Against one scale for 32 columns
/// it halves what rounding costs in perplexity, for some 7 % more instructions, counted
/// (docs/kernels.md).
constexpr int64_t kActCols = 16;

/// Rows of activations as int8: x = scale * code, one scale per 16 columns; codes are -127..127.
/// Padding columns hold 0, so a packed row's padding codes meet zeros.
struct Int8Rows {
  int64_t blocks = 0;         ///< of 32 columns, per row
  std::vector<int8_t> codes;  ///< [rows][blocks * 32]
  std::vector<float> scales;  ///< [rows][blocks * 2]
  std::vector<float> sums;    ///< [rows][blocks] sum of scale * code over the block

  /// PRECOND: padded_cols is a multiple of 32.
  void resize(int64_t rows, int64_t padded_cols);
  int8_t* row_codes(int64_t m) { return codes.data() + m * blocks * kBlockCols; }
  float* row_scales(int64_t m) { return scales.data() + m * blocks * 2; }
  float* row_sums(int64_t m) { return sums.data() + m * blocks; }
  const int8_t* row_codes(int64_t m) const { return codes.data() + m * blocks * kBlockCols; }
  const float* row_scales(int64_t m) const { return scales.data() + m * blocks * 2; }
  const float* row_sums(int64_t m) const { return sums.data() + m * blocks; }
};

/// Rows of activations on a scheme's grids (ActivationGrid): x = scale (code + shift), one scale
/// and shift per row; codes are -128..127. Weak and padding columns hold 0.
struct GridRows {
  int64_t blocks = 0;                 ///< of 32 columns, per row
  std::vector<int8_t> codes;          ///< [rows][blocks * 32]
  std::vector<int32_t> sums;          ///< [rows][blocks] sum of the codes
  std::vector<float> scales, shifts;  ///< [rows]

  /// PRECOND: padded_cols is a multiple of 32.
  void resize(int64_t rows, int64_t padded_cols);
  int8_t* row_codes(int64_t m) { return codes.data() + m * blocks * kBlockCols; }
  int32_t* row_sums(int64_t m) { return sums.data() + m * blocks; }
  const int8_t* row_codes(int64_t m) const { return codes.data() + m * blocks * kBlockCols; }
  const int32_t* row_sums(int64_t m) const { return sums.data() + m * blocks; }
};

/// A matrix in memory, rows one after another; does not own it.
struct Rows {
  const float* data = nullptr;
  int64_t stride = 0;  ///< floats from one row to the next

  const float* row(int64_t m) const { return data + m * stride; }
};

struct MutableRows {
  float* data = nullptr;
  int64_t stride = 0;

  float* row(int64_t m) const { return data + m * stride; }
};

/// Weights stored as plain floats, [rows][cols] without padding.
struct DenseView {
  enum class Type { f32, f16, bf16 };
  Type type = Type::f32;
  const void* data = nullptr;
  int64_t rows = 0, cols = 0;
};

/// f(elements of w, in their type)
template <class F>
void with_elements(const DenseView& w, F&& f) {
  switch (w.type) {
    case DenseView::Type::f32:
      return f(static_cast<const float*>(w.data));
    case DenseView::Type::f16:
      return f(static_cast<const f16*>(w.data));
    case DenseView::Type::bf16:
      return f(static_cast<const bf16*>(w.data));
  }
}

/// Positions that one tile of keys holds side by side: scores of 8 positions are one vector.
constexpr int64_t kKeyTile = 8;

/// One KV head's cache of one sequence. Keys lie in tiles of 8 positions, [tile][head_dim][8], so
/// that a score needs no horizontal sum; values lie row by row, [position][head_dim].
template <class T>
struct KvView {
  const T* keys = nullptr;
  const T* values = nullptr;
};

/// The same of codes of up to 8 bits: the grid of each position's keys and of its values
/// (kernels/kv_grid.h), by position.
struct KvCodes : KvView<uint8_t> {
  const f16* key_scales = nullptr;
  const f16* key_lows = nullptr;
  const f16* value_scales = nullptr;
  const f16* value_lows = nullptr;
};

/// Positions [begin, end) of a cache, begin a multiple of 8, and the keys that the caller turns to
/// after them, of whatever head: they come into the second cache meanwhile. nullptr: none.
struct Stretch {
  int64_t begin = 0, end = 0;
  const void* next_keys = nullptr;
};

/// What one query may look at: positions [first, end), and what is added to the score of each
/// position (ALiBi), by position; nullptr: nothing.
struct Sight {
  int64_t first = 0, end = 0;
  const float* bias = nullptr;
};

/// What softmax attention over a stretch of positions leaves behind: the largest score, the sum
/// of exponentials relative to it, and the weighted sum of values. Two merge into one.
struct AttentionPart {
  float top;
  float sum;
  float* out;  ///< [head_dim], not divided by `sum`
};

/// All kernels of one instruction set. Tokens are rows of x; y gets y[m][n] for n in a range.
struct Kernels {
  std::string_view name;

  /// One row of n floats into a row of Int8Rows; codes [n, blocks * 32) become 0. A NaN or an
  /// infinity makes the scale of its columns a NaN.
  void (*quantize_row)(const float* x, int64_t n, int8_t* codes, float* scales, float* sums,
                       int64_t blocks);

  /// The smallest and largest of n values, n > 0; NaNs where one is not finite.
  void (*range)(const float* x, int64_t n, float* low, float* high);

  /// One row of n floats into a row of GridRows: grid.code(x) - grid.base(); codes [n, blocks * 32)
  /// become 0. NaNs give any code.
  void (*quantize_row_to)(const ActivationGrid& grid, const float* x, int64_t n, int8_t* codes,
                          int32_t* sums, int64_t blocks);

  /// y[m][8 p .. 8 p + 8) for panels p in [begin, end) and m in [0, tokens), with int8
  /// activations. Weak columns included: `x` must be 0 there, and `weak_x` [tokens][weak_columns]
  /// holds what stands there. Rows beyond the tensor's are not written.
  void (*packed_int8)(const PackedView& w, const Int8Rows& x, const float* weak_x, int64_t tokens,
                      int64_t begin, int64_t end, MutableRows y);

  /// The same with activations on grids. Within a group all sums are integers, between groups
  /// fp64: what codes and zero points leave to cancel costs no precision. `live_sums` [panels * 8]
  /// holds, of each row, the sum of its live weights: what a shift is multiplied with.
  void (*packed_grid)(const PackedView& w, const GridRows& x, const double* live_sums,
                      const float* weak_x, int64_t tokens, int64_t begin, int64_t end,
                      MutableRows y);

  /// The same with fp32 activations; x has cols columns, rounded up to 32, 0 in weak
  /// and padding ones.
  void (*packed_exact)(const PackedView& w, Rows x, const float* weak_x, int64_t tokens,
                       int64_t begin, int64_t end, MutableRows y);

  /// y[m][n] for n in [begin, end).
  void (*dense)(const DenseView& w, Rows x, int64_t tokens, int64_t begin, int64_t end,
                MutableRows y);

  /// y = x / sqrt(mean(x^2) + eps) * weight, n values.
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* y);

  /// y = (x - mean) / sqrt(variance + eps) * weight + bias, n values.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t n,
                     float* y);

  /// y = activation(gate) * up, or activation(gate) where up is nullptr; n values. y may be gate.
  void (*activate)(Activation activation, const float* gate, const float* up, int64_t n, float* y);

  /// `queries` queries of one KV head over a stretch of its cache; query i sees what sights[i]
  /// says. A query that sees none of it leaves a sum of 0. q is [queries][head_dim], scaled by
  /// 1 / sqrt(head_dim) already. `scores` is scratch, [queries][positions rounded up to 8].
  void (*attend_f16)(const float* q, int64_t queries, int64_t head_dim, KvView<f16> kv,
                     Stretch stretch, const Sight* sights, float* scores, AttentionPart* parts);
  void (*attend_f32)(const float* q, int64_t queries, int64_t head_dim, KvView<float> kv,
                     Stretch stretch, const Sight* sights, float* scores, AttentionPart* parts);
  void (*attend_codes)(const float* q, int64_t queries, int64_t head_dim, KvCodes kv,
                       Stretch stretch, const Sight* sights, float* scores, AttentionPart* parts);
};

/// The plain C++ kernels: every CPU has them.
const Kernels& scalar_kernels();

/// AVX2 + FMA + F16C; nullptr where this build or this CPU has none.
const Kernels* avx2_kernels();

/// And AVX-512 with VNNI. Same bits as avx2_kernels() wherever integers are summed.
const Kernels* avx512_kernels();

/// Arm: what every AArch64 has; nullptr on other CPUs.
const Kernels* neon_kernels();

/// And the dot products of Armv8.2 (sdot). Same bits as neon_kernels() wherever integers are
/// summed.
const Kernels* neon_dotprod_kernels();

/// Everything that runs here, slowest first.
std::vector<const Kernels*> available_kernels();

/// The fastest of them, or the one that the environment variable OQ_CPU names ("scalar", ...).
/// Throws oq::Error when it names one that cannot run here.
const Kernels& best_kernels();

/// Adds `part` to `total` (both of head_dim values): the exact rule of online softmax.
void merge(AttentionPart& total, const AttentionPart& part, int64_t head_dim);

}  // namespace oq::cpu
