/// Two protocols. ABQ's [Zeng et al. 2024]: the product alone, its weights used again and again, so
/// that they come from caches where they fit. Ours: weights from memory, and the activations'
/// ranges, codes and sums included.

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "bench/gpu/kernel_bench.h"
#include "bench/gpu/product.h"
#include "bench/gpu/timing.h"
#include "kernels/cuda/integer.h"
#include "kernels/cuda/stream.h"

namespace oq {
namespace {

constexpr int kHotLaunches = 64;
const std::string kTable = "Linears on codes of activations, in a graph";

struct AbqShape {
  int rows, cols;
  std::array<double, 3> published;  ///< w2a8 at 1, 4, 8 tokens: times as fast as int8; 0: not
  double ours;  ///< times as fast as int8, cold: what w2a8 is held to; 0: nothing
};
constexpr std::array<int, 3> kTokens = {1, 4, 8};
constexpr AbqShape kShapes[] = {{4096, 4096, {7.48, 6.00, 4.35}, 1.5},
                                {8192, 1024, {}, 0},
                                {11008, 4096, {3.87, 3.86, 3.68}, 2.2},
                                {5120, 5120, {}, 0},
                                {4096, 11008, {4.06, 3.82, 3.66}, 0}};

/// Room for what quantization leaves behind, and one call of an engine.
class IntegerProduct {
 public:
  IntegerProduct(KernelBench& bench, const ProductShape& s, Product::Weights weights)
      : stream_(bench.stream), product_(bench, s, weights) {
    const cuda::PackedArgs args = product_.args(0);
    const int strips = args.linears[0].matrix.strips();
    memory_ = cuda::Memory(
        cuda::quantized_bytes(cuda::forms_of(args), s.tokens, strips, args.weak_columns));
    rows_ = cuda::quantized_rows(memory_.data(), cuda::form_per_linear(args), cuda::forms_of(args),
                                 s.tokens, strips, args.weak_columns);
  }

  double hot(cuda::Engine engine) {
    cuda::quantize(stream_, call(engine, 0));
    return time_graph(stream_, kHotLaunches,
                      [&](int i) { cuda::integer_linears(stream_, call(engine, i)); });
  }
  /// Quantization by a launch of its own, or by the blocks of the linear.
  double cold(cuda::Engine engine, bool fused) {
    return time_graph(stream_, product_.copies(), [&](int i) {
      cuda::IntegerArgs args = call(engine, i);
      args.fused = fused;
      if (!fused) cuda::quantize(stream_, args);
      cuda::integer_linears(stream_, args);
    });
  }
  bool can_fuse() const { return cuda::can_fuse(stream_, product_.args(0)); }

 private:
  cuda::IntegerArgs call(cuda::Engine engine, int i) const {
    return {.engine = engine, .linears = product_.args(i), .rows = rows_};
  }

  cuda::Stream& stream_;
  Product product_;
  cuda::Memory memory_;
  cuda::QuantizedRows rows_{};
};

/// Other devices have no such instruction: a kernel of planes would trap there.
bool has_planes() {
  std::string why;
  const auto device = cuda::find_device(why);
  return device && device->has_bit_planes();
}

/// Adds a column for each way that was taken, and one that names the fastest. Returns its time.
double add_ways(Results::Json& columns, const std::vector<std::pair<std::string, double>>& ways) {
  const auto least = std::min_element(
      ways.begin(), ways.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  for (const auto& way : ways) columns["us, " + way.first] = way.second * 1e6;
  columns["fastest"] = least->first;
  return least->second;
}

/// `aim`: times as fast as int8; 0: nothing.
Results::Json columns_of(const std::vector<std::pair<std::string, double>>& ways, double int8,
                         double aim) {
  Results::Json columns;
  const double time = add_ways(columns, ways);
  columns["cublasLt int8 us"] = int8 > 0 ? Results::Json(int8 * 1e6) : Results::Json();
  if (int8 > 0) columns["times as fast as int8"] = int8 / time;
  if (aim > 0) hold_to(columns, fmt::format("{} x int8", aim), int8 / time >= aim);
  return columns;
}

std::vector<std::pair<const char*, cuda::Engine>> engines() {
  if (!has_planes()) return {{"bytes", cuda::Engine::bytes}};
  return {{"bytes", cuda::Engine::bytes}, {"planes", cuda::Engine::planes}};
}

Results::Json measure_hot(KernelBench& bench, const ProductShape& s, double aim) {
  IntegerProduct p(bench, s, Product::Weights::hot);
  std::vector<std::pair<std::string, double>> ways;
  for (const auto& engine : engines()) ways.emplace_back(engine.first, p.hot(engine.second));
  return columns_of(ways, bench.cublas.int8(s.plain(), Cublas::Weights::hot), aim);
}

/// All that EngineTuner may choose from.
Results::Json measure_cold(KernelBench& bench, const ProductShape& s, double aim) {
  IntegerProduct p(bench, s, Product::Weights::cold);
  std::vector<std::pair<std::string, double>> ways;
  for (const auto& engine : engines()) {
    ways.emplace_back(engine.first, p.cold(engine.second, false));
    if (!p.can_fuse()) continue;
    ways.emplace_back(engine.first + std::string(", fused"), p.cold(engine.second, true));
  }
  return columns_of(ways, bench.cublas.int8(s.plain()), aim);
}

void add(KernelBench& bench, const ProductShape& s, double published, double ours) {
  bench.row(kTable, s.name() + ", hot, packing excluded",
            [&] { return measure_hot(bench, s, published); });
  bench.row(kTable, s.name() + ", cold, packing included",
            [&] { return measure_cold(bench, s, ours); });
}

}  // namespace

void measure_integers(KernelBench& bench) {
  for (const AbqShape& shape : kShapes) {
    for (size_t i = 0; i < kTokens.size(); ++i) {
      add(bench, {"w2a8", shape.rows, shape.cols, kTokens[i]}, shape.published[i], shape.ours);
    }
  }
  for (const char* scheme : {"w2*a8", "w4a8", "w8a8", "w6a6", "w4a4"}) {
    add(bench, {scheme, 4096, 4096}, 0, 0);
    add(bench, {scheme, 11008, 4096}, 0, 0);
  }
}

}  // namespace oq
