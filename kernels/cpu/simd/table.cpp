#include "kernels/cpu/simd/simd.h"

#define OQ_TEXT_OF(name) #name
#define OQ_TEXT(name) OQ_TEXT_OF(name)

namespace oq::cpu::OQ_ISA {

const Kernels& table() {
  static const Kernels kernels = {
      .name = OQ_TEXT(OQ_ISA),
      .quantize_row = quantize_row,
      .range = range,
      .quantize_row_to = quantize_row_to,
      .packed_int8 = packed_int8,
      .packed_grid = packed_grid,
      .packed_exact = packed_exact,
      .dense = dense,
      .rms_norm = rms_norm,
      .layer_norm = layer_norm,
      .activate = activate,
      .attend_f16 = attend_f16,
      .attend_f32 = attend_f32,
      .attend_codes = attend_codes,
  };
  return kernels;
}

}  // namespace oq::cpu::OQ_ISA
