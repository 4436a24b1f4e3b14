#include "runtime/backend/cuda/integers.h"

#include <algorithm>

namespace oq {

cuda::QuantizedRows CudaIntegers::rows_for(const cuda::PackedArgs& args) {
  const int forms = cuda::forms_of(args);
  const int room = args.experts == nullptr ? args.in.tokens : cuda::kExpertRows;
  int strips = 0;
  for (int l = 0; l < args.count; ++l) {
    strips = std::max(strips, args.linears[l].matrix.strips());
  }
  const size_t bytes = cuda::quantized_bytes(forms, room, strips, args.weak_columns);
  const size_t room_now = memory_.empty() ? 0 : memory_.back().bytes();
  if (bytes > room_now) memory_.emplace_back(std::max(bytes, 2 * room_now));
  return cuda::quantized_rows(memory_.back().data(), cuda::form_per_linear(args), forms, room,
                              strips, args.weak_columns);
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
