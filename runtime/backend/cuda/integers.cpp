#include "runtime/backend/cuda/integers.h"

#include <algorithm>
#include <string>

#include <fmt/format.h>

#include "format/bytes.h"

namespace oq {

namespace {

/// The sizes of a call's QuantizedRows.
struct Codes {
  int forms, room, strips = 0, weak_columns;

  explicit Codes(const cuda::PackedArgs& args)
      : forms(cuda::forms_of(args)),
        room(args.experts == nullptr ? args.in.tokens : cuda::kExpertRows),
        weak_columns(args.weak_columns) {
    for (int l = 0; l < args.count; ++l) {
      strips = std::max(strips, args.linears[l].matrix.strips());
    }
  }
  size_t bytes() const { return cuda::quantized_bytes(forms, room, strips, weak_columns); }
};

/// The sizes of a call's values on their grids, and where the rows' statistics begin behind them.
struct Values {
  int experts, room, stride;
  size_t stats;

  explicit Values(const cuda::DenseArgs& args)
      : experts(args.experts == nullptr ? 1 : args.expert_count),
        room(args.experts == nullptr ? args.in.tokens : cuda::kExpertRows),
        stride(int(round_up(uint64_t(args.linears[0].matrix.cols), 4))),
        stats(round_up(size_t(experts) * size_t(room) * size_t(stride) * sizeof(float), 256)) {}
  size_t bytes() const { return stats + size_t(experts) * size_t(room) * sizeof(cuda::RowStats); }
};

}  // namespace

size_t CudaIntegers::value_bytes(const cuda::DenseArgs& args) { return Values(args).bytes(); }

void CudaIntegers::check_room(size_t bytes) const {
  if (bytes <= memory_.bytes()) return;
  throw Error({.what = "no room was reserved for the codes of so many activations",
               .where = "cuda backend",
               .expected = fmt::format("at most {} bytes", memory_.bytes()),
               .found = std::to_string(bytes)});
}

size_t CudaIntegers::code_bytes(const cuda::PackedArgs& args) { return Codes(args).bytes(); }

cuda::QuantizedRows CudaIntegers::rows_for(const cuda::PackedArgs& args) {
  const Codes codes(args);
  check_room(codes.bytes());
  return cuda::quantized_rows(memory_.data(), cuda::form_per_linear(args), codes.forms, codes.room,
                              codes.strips, codes.weak_columns);
}

/// Quantization counts, for the engines want different layouts. What the call changes stays as it
/// is; what it overwrites may be overwritten more than once.
std::optional<double> CudaIntegers::measure(cuda::IntegerArgs call, EngineChoice choice) {
  cuda::OutputArgs& out = call.linears.out;
  cuda::Memory elsewhere;
  if (out.finish == cuda::Finish::add || out.finish == cuda::Finish::multiply) {
    elsewhere = cuda::Memory(size_t(call.linears.in.tokens) * size_t(out.stride) * sizeof(float));
    out.finish = cuda::Finish::store;
    out.y = elsewhere.as<float>();
  }
  return cuda::measured(stream_, [&] { start(call, choice); });
}

void CudaIntegers::start(cuda::IntegerArgs call, EngineChoice choice) {
  call.engine = choice.engine;
  call.fused = choice.fused;
  if (!call.fused) cuda::quantize(stream_, call);
  cuda::integer_linears(stream_, call);
}

void CudaIntegers::run(const cuda::PackedArgs& args) {
  const cuda::IntegerArgs call{
      .engine = cuda::Engine::bytes, .linears = args, .rows = rows_for(args)};
  start(call, tuner_.choose(EngineShape::of(args), cuda::can_fuse(stream_, args),
                            [&](EngineChoice choice) { return measure(call, choice); }));
}

cuda::DenseArgs CudaIntegers::on_grid(const cuda::DenseArgs& args) {
  const Values v(args);
  check_room(v.bytes());
  auto* values = memory_.as<float>();
  cuda::quantize_values(stream_,
                        {.in = args.in,
                         .cols = args.linears[0].matrix.cols,
                         .experts = v.experts,
                         .room = v.room,
                         .values = values,
                         .stride = v.stride,
                         .stats = reinterpret_cast<cuda::RowStats*>(memory_.data() + v.stats)});
  cuda::DenseArgs next = args;
  next.in = {.x = values,
             .stride = v.stride,
             .tokens = args.in.tokens,
             .rows = nullptr,
             .norm = {},
             .bits = 16,
             .count = args.in.count,
             .expert_stride = int64_t(v.room) * v.stride};
  return next;
}

}  // namespace oq
