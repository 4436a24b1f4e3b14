#include <fmt/format.h>

#include "bench/gpu/kernel_bench.h"
#include "bench/gpu/product.h"
#include "bench/gpu/timing.h"

namespace oq {
namespace {

constexpr double kShare = 0.90;         ///< of the bandwidth, that a row is held to
constexpr double kMostWeakCost = 0.03;  ///< of a linear's time

double time_packed(KernelBench& bench, const ProductShape& shape) {
  const Product p(bench, shape);
  return time_graph(bench.stream, p.copies(),
                    [&](int i) { cuda::packed_linears(bench.stream, p.args(i)); });
}

/// Times as fast as cuBLAS in fp16 that a row is held to; 0: nothing.
double least_speedup(const ProductShape& s) {
  if (s.scheme != std::string("w4a16g128") || s.tokens != 1 || s.cols != 4096) return 0;
  return s.rows == 22016 ? 3.3 : s.rows == 4096 ? 2.5 : 0;
}

Results::Json measure(KernelBench& bench, const ProductShape& s, bool held) {
  const Product p(bench, s);
  const double time = time_graph(bench.stream, p.copies(),
                                 [&](int i) { cuda::packed_linears(bench.stream, p.args(i)); });
  const double fp16 = bench.cublas.fp16(s.plain());
  Results::Json columns = {{"us", time * 1e6},
                           {"GB/s", p.bytes() / time / 1e9},
                           {"(t0 + bytes / bandwidth) / time", bench.limit(p.bytes()) / time},
                           {"cuBLAS fp16 us", fp16 * 1e6},
                           {"times as fast", fp16 / time}};
  if (held) {
    const double limit = bench.limit(p.bytes(), kShare);
    hold_to(columns, fmt::format("at most {:.1f} us", limit * 1e6), time <= limit);
  }
  if (const double least = least_speedup(s); least > 0) {
    hold_to(columns, fmt::format("{} x cuBLAS", least), fp16 / time >= least);
  }
  return columns;
}

/// The columns in f16 that make a weight cost 3.01 bits in place of 3.
uint32_t owq_columns(int cols) { return uint32_t(0.01 * cols / 13); }

Results::Json measure_weak(KernelBench& bench, const ProductShape& s) {
  ProductShape without = s;
  without.weak_columns = 0;
  const double time = time_packed(bench, s), plain = time_packed(bench, without);
  const double cost = time / plain - 1;
  Results::Json columns = {{"us", time * 1e6}, {"us without", plain * 1e6}, {"cost %", cost * 100}};
  hold_to(columns, fmt::format("less than {} %", kMostWeakCost * 100), cost < kMostWeakCost);
  return columns;
}

}  // namespace

void measure_linears(KernelBench& bench) {
  const std::string table = "Linears of one token, cold, in a graph";
  const auto add = [&](const ProductShape& s, bool held) {
    bench.row(table, s.name(), [&] { return measure(bench, s, held); });
  };
  for (const char* scheme : {"w4a16g128", "w3a16g128", "w2a16g128"}) {
    for (const ProductShape& s : llama_block(scheme, 1)) add(s, true);
  }
  for (ProductShape s : llama_block("w3a16", 1)) {
    s.weak_columns = owq_columns(s.cols);
    bench.row("Weak columns at 3.01 bits, one token, cold, in a graph", s.name(),
              [&] { return measure_weak(bench, s); });
  }
  for (const ProductShape& s : llama_block("w2*a16g128", 1)) add(s, false);
  for (const char* scheme : {"w5a16g128", "w6a16g128", "w7a16g128", "w8a16g128"}) {
    add({scheme, 4096, 4096}, false);
  }
  const auto add_few = [&](const ProductShape& s) {
    bench.row("Linears of a few tokens, cold, in a graph", s.name(),
              [&] { return measure(bench, s, false); });
  };
  for (const int tokens : {2, 4, 8}) add_few({"w4a16g128", 4096, 4096, tokens});
  for (const int tokens : {1, 8}) {  // every block norms again: once for each token
    add_few({.scheme = "w4a16g128", .rows = 4096, .cols = 4096, .tokens = tokens, .norm = true});
  }
}

}  // namespace oq
