#include "runtime/backend/cuda/integers.h"

#include <algorithm>
#include <string>

#include <fmt/format.h>

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

}  // namespace

size_t CudaIntegers::code_bytes(const cuda::PackedArgs& args) { return Codes(args).bytes(); }

cuda::QuantizedRows CudaIntegers::rows_for(const cuda::PackedArgs& args) {
  const Codes codes(args);
  if (codes.bytes() > memory_.bytes()) {
    throw Error({.what = "no room was reserved for the codes of so many activations",
                 .where = "cuda backend",
                 .expected = fmt::format("at most {} bytes", memory_.bytes()),
                 .found = std::to_string(codes.bytes())});
  }
  return cuda::quantized_rows(memory_.data(), cuda::form_per_linear(args), codes.forms, codes.room,
                              codes.strips, codes.weak_columns);
}

/// Quantization counts, for the engines want different layouts. What the call adds to stays as it
/// is; what it overwrites may be overwritten more than once.
std::optional<double> CudaIntegers::measure(cuda::IntegerArgs call, cuda::Engine engine) {
  call.engine = engine;
  cuda::OutputArgs& out = call.linears.out;
  cuda::Memory elsewhere;
  if (out.finish == cuda::Finish::add) {
    elsewhere = cuda::Memory(size_t(call.linears.in.tokens) * size_t(out.stride) * sizeof(float));
    out.finish = cuda::Finish::store;
    out.y = elsewhere.as<float>();
  }
  return cuda::measured(stream_, [&] {
    cuda::quantize(stream_, call);
    cuda::integer_linears(stream_, call);
  });
}

void CudaIntegers::run(const cuda::PackedArgs& args) {
  cuda::IntegerArgs call{.engine = cuda::Engine::bytes, .linears = args, .rows = rows_for(args)};
  call.engine = tuner_.choose(EngineShape::of(args),
                              [&](cuda::Engine engine) { return measure(call, engine); });
  cuda::quantize(stream_, call);
  cuda::integer_linears(stream_, call);
}

}  // namespace oq
