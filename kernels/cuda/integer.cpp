#include "kernels/cuda/integer.h"

namespace oq::cuda {

size_t quantized_bytes(int forms, int room, int strips, int weak_room) {
  return QuantizedOffsets(forms, room, strips, weak_room).bytes;
}

QuantizedRows quantized_rows(std::byte* base, bool form_per_linear, int forms, int room, int strips,
                             int weak_room) {
  const QuantizedOffsets o(forms, room, strips, weak_room);
  return {.form_per_linear = form_per_linear,
          .room = room,
          .weak_room = weak_room,
          .codes = reinterpret_cast<uint32_t*>(base),
          .sums = reinterpret_cast<int32_t*>(base + o.sums),
          .grids = reinterpret_cast<TokenGrid*>(base + o.grids),
          .stats = reinterpret_cast<RowStats*>(base + o.stats),
          .weak = reinterpret_cast<float*>(base + o.weak)};
}

bool form_per_linear(const PackedArgs& args) { return args.weak_columns > 0; }

int forms_of(const PackedArgs& args) {
  const int experts = args.experts == nullptr ? 1 : args.expert_count;
  return form_per_linear(args) ? experts * args.count : experts;
}

}  // namespace oq::cuda
