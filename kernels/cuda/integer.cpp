#include "kernels/cuda/integer.h"

#include "format/bytes.h"

namespace oq::cuda {
namespace {

/// The parts of QuantizedRows, each 256-aligned.
struct Offsets {
  size_t sums, grids, stats, weak, bytes;
};

Offsets offsets_of(int forms, int room, int strips, int weak_room) {
  const auto rows = size_t(forms) * size_t(room);
  size_t at = 0;
  const auto take = [&](size_t bytes) {
    const size_t from = at;
    at = round_up(at + bytes, 256);
    return from;
  };
  take(rows * size_t(strips) * 32 * sizeof(uint32_t));
  Offsets o{};
  o.sums = take(rows * size_t(strips) * 4 * sizeof(int32_t));
  o.grids = take(rows * sizeof(TokenGrid));
  o.stats = take(rows * sizeof(RowStats));
  o.weak = take(rows * size_t(weak_room) * sizeof(float));
  o.bytes = at;
  return o;
}

}  // namespace

size_t quantized_bytes(int forms, int room, int strips, int weak_room) {
  return offsets_of(forms, room, strips, weak_room).bytes;
}

QuantizedRows quantized_rows(std::byte* base, bool form_per_linear, int forms, int room, int strips,
                             int weak_room) {
  const Offsets o = offsets_of(forms, room, strips, weak_room);
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
