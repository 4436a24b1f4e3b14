#pragma once

#include "format/bytes.h"
#include "kernels/cuda/kernels.h"

/// Linears whose inputs a scheme quantizes to 8 bits or less: `quantize` puts rows onto their grids
/// (kernels/activation_grid.h) and packs the codes for one of two engines, `integer_linears`
/// multiplies them; or, `fused`, quantizes in each of its blocks, which is a launch less and gives
/// the same bits. Codes a (of x) and w (of weights) are unsigned, so that
///   y = a_scale x sum over groups of scale x (sum a w - zero x sum a - a_zero x sum (w - zero)),
/// sums over live columns. What stands in parentheses is worked out for 128 columns at a time and
/// rounded to fp32 once: zero points that lie far outside the codes cost no digits.
namespace oq::cuda {

/// What multiplies. `bytes`: tensor cores on bytes (mma m16n8k32). `planes`: tensor cores on bit
/// planes, each plane of weights with each of x (mma m16n8k128, and.popc): the work grows with the
/// product of both widths, and a device of compute capability 8.0 to 9.0 has it.
enum class Engine { bytes, planes };

/// The kernels of the two: bytes has one more for more than 8 tokens.
enum class IntegerKernel { narrow, wide, planes };

/// Planes that codes of x take: room for 8 divided by it are the tokens of one mma.
constexpr int activation_planes(int bits) { return bits <= 2 ? 2 : bits <= 4 ? 4 : 8; }

/// Words that 128 columns of a row's codes take.
constexpr int code_words(Engine engine, int bits) {
  return engine == Engine::bytes ? 32 : 4 * activation_planes(bits);
}

struct TokenGrid {
  float scale, zero;
};
/// What norm and range a row has.
struct RowStats {
  float mean, inv;  ///< of the norm
  float low, high;  ///< of live columns behind it; NaN where one of them is not finite
};

/// Rows of x on their grids, in device memory; does not own it. There is a form of all rows for
/// each expert; or, where linears have weak columns, for each of an expert's linears.
struct QuantizedRows {
  bool form_per_linear;
  int room;       ///< rows of a form
  int weak_room;  ///< weak columns of a row
  /// [form][strip][row][32 words], or [..][4 planes words] of planes. Word 8 q + r of bytes holds
  /// columns 8 r + 2 q, then 64 on, then those two plus 1. Word 4 i + q of planes: plane i of
  /// columns 8 e + 2 q + h at bit 16 h + e. Codes of weak columns and of padding are 0.
  uint32_t* codes;
  int32_t* sums;     ///< [form][strip][row][4]: of 32 columns, sum of codes + live columns << 16
  TokenGrid* grids;  ///< [form][row]
  RowStats* stats;   ///< [form][row]: where ranges are per tensor
  float* weak;       ///< [form][row][weak_room]: behind the norm, not quantized
};

struct IntegerArgs {
  Engine engine;
  /// in.tokens is any number, with experts as many as their lists hold; in.bits is 2 to 8.
  PackedArgs linears;
  QuantizedRows rows;  ///< of `quantize`; not looked at where `fused`
  bool fused = false;
};

/// The parts of QuantizedRows in one piece of memory, each 256-aligned.
struct QuantizedOffsets {
  size_t sums = 0, grids = 0, stats = 0, weak = 0, bytes = 0;

  /// `strips`: of 128 columns, of the widest matrix.
  constexpr QuantizedOffsets(int forms, int room, int strips, int weak_room) {
    const auto rows = size_t(forms) * size_t(room);
    place(rows * size_t(strips) * 32 * sizeof(uint32_t));
    sums = place(rows * size_t(strips) * 4 * sizeof(int32_t));
    grids = place(rows * sizeof(TokenGrid));
    stats = place(rows * sizeof(RowStats));
    weak = place(rows * size_t(weak_room) * sizeof(float));
  }

 private:
  constexpr size_t place(size_t size) {
    const size_t at = bytes;
    bytes = round_up(at + size, 256);
    return at;
  }
};

/// Bytes of everything in QuantizedRows, and the same laid out from `base`.
size_t quantized_bytes(int forms, int room, int strips, int weak_room);
QuantizedRows quantized_rows(std::byte* base, bool form_per_linear, int forms, int room, int strips,
                             int weak_room);

/// The forms of a call's rows.
int forms_of(const PackedArgs& args);
/// Whether they want one for each linear.
bool form_per_linear(const PackedArgs& args);

/// Fills args.rows.
void quantize(Stream& stream, const IntegerArgs& args);
void integer_linears(Stream& stream, const IntegerArgs& args);

/// Whether a call can be fused: up to 8 tokens, whose codes a block has shared memory for.
bool can_fuse(const Stream& stream, const PackedArgs& args);

/// Rows of x behind norm and grid as floats, for weights that are not packed.
struct ValuesArgs {
  InputArgs in;  ///< with experts: their lists
  int cols;
  int experts;  ///< 1 where there are none
  int room;     ///< rows of an expert in what follows
  float* values;
  int stride;
  RowStats* stats;  ///< [expert][room]: where ranges are per tensor
};
void quantize_values(Stream& stream, const ValuesArgs& args);

}  // namespace oq::cuda
