#include <fmt/format.h>

#include "bench/gpu/kernel_bench.h"
#include "bench/gpu/product.h"
#include "bench/gpu/timing.h"

namespace oq {
namespace {

constexpr const char* kScheme = "w4a16g128";

struct BatchSize {
  int tokens;
  double most;  ///< times cuBLAS's time that it is held to; 0: nothing
};
constexpr BatchSize kSizes[] = {{16, 0},  {32, 0},    {64, 0},   {96, 0},     {128, 0},
                                {256, 0}, {512, 1.5}, {1024, 0}, {2048, 1.15}};

struct Time {
  double seconds;
  bool graph;
};

/// All linears of a block one after another: larger together than the caches. As one graph, as
/// cuBLAS beside it; from the host where that cannot be recorded.
Time time_block(KernelBench& bench, const std::vector<Product>& products,
                cuda::BatchEngine engine) {
  cuda::BatchSpace space;  // grown by the first call, before anything is recorded
  const auto block = [&](int) {
    for (const Product& p : products) {
      cuda::batch_linears(bench.stream, p.args(0), {engine, false}, space);
    }
  };
  Time time{0, true};
  try {
    time.seconds = time_graph(bench.stream, 1, block);
  } catch (const Error&) {
    time = {time_stream(bench.stream, 1, block), false};
  }
  bench.stream.synchronize();  // before its scratch goes
  return time;
}

Results::Json measure(KernelBench& bench, const BatchSize& size) {
  std::vector<Product> products;
  double fp16 = 0;
  for (const ProductShape& s : llama_block(kScheme, size.tokens)) {
    products.emplace_back(bench, s, Product::Weights::hot);
    fp16 += bench.cublas.fp16(s.plain());
  }
  const Time tiles = time_block(bench, products, cuda::BatchEngine::tiles);
  const Time gemm = time_block(bench, products, cuda::BatchEngine::gemm);
  const double time = std::min(tiles.seconds, gemm.seconds);
  Results::Json columns = {{"us, mma on packed weights", tiles.seconds * 1e6},
                           {"us, f16 tiles to cuBLAS", gemm.seconds * 1e6},
                           {"both in a graph", tiles.graph && gemm.graph},
                           {"cuBLAS fp16 us", fp16 * 1e6},
                           {"times its time", time / fp16}};
  if (size.most > 0) {
    hold_to(columns, fmt::format("at most {} x cuBLAS", size.most), time <= size.most * fp16);
  }
  return columns;
}

}  // namespace

void measure_batches(KernelBench& bench) {
  for (const BatchSize& size : kSizes) {
    bench.row("The linears of a block of LLaMA-7B, prompts and batches",
              fmt::format("{}, {} tokens", kScheme, size.tokens),
              [&] { return measure(bench, size); });
  }
}

}  // namespace oq
