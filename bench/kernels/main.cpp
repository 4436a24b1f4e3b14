/// Every packed kernel of every instruction set that runs here, one tensor at a time; and
/// attention.
///
///   cache    512 rows, which stay in the second cache: what the instructions cost
///   memory   tensors of 1 GiB in all (or --size), read in turn: nothing is in a cache when it is
///   read
///
/// Counters: weights and bytes of weights per second, of all threads together, and multiplications
/// per second (weights x tokens). Filter as Google Benchmark does, as in
/// --benchmark_filter='avx512/w4.*/memory/tokens:1/'.

#include <algorithm>
#include <memory>
#include <vector>

#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include "bench/random_weights.h"
#include "format/bytes.h"
#include "format/scheme.h"
#include "kernels/cpu/kernels.h"

namespace {

using namespace oq;

constexpr int64_t kCols = 2048;
constexpr uint64_t kCacheRows = 512, kMemoryBytes = 1 << 30;

/// Tensors of one shape and packing, filled.
class Tensors {
 public:
  Tensors(const Packing& packing, uint64_t rows, uint64_t total_bytes)
      : layout_(PackedLayout::of(rows, kCols, packing)),
        count_(std::max<uint64_t>(1, total_bytes / layout_.bytes)),
        stride_(round_up(layout_.bytes, 64)),
        bytes_(count_ * stride_) {
    const auto source = packed_source(packing, kCols, 0.02f, Rng(1));
    const TensorInfo info{.name = "w",
                          .kind = Kind::packed,
                          .rows = rows,
                          .cols = kCols,
                          .packing = packing,
                          .bytes = layout_.bytes};
    for (uint64_t i = 0; i < count_; ++i) {
      for (uint64_t p = 0; p < layout_.panels; ++p) {
        Rng rng(i, p);
        source->fill_panel(info, std::span(bytes_).subspan(i * stride_, layout_.bytes), p, rng);
      }
    }
  }
  uint64_t count() const { return count_; }
  const PackedLayout& layout() const { return layout_; }
  PackedView view(uint64_t i) const { return {layout_, bytes_.data() + i * stride_}; }

 private:
  PackedLayout layout_;
  uint64_t count_, stride_;
  std::vector<std::byte> bytes_;
};

/// Rows of activations, quantized as the scheme's linears want them.
struct Activations {
  cpu::Int8Rows int8;     ///< a16
  cpu::GridRows on_grid;  ///< a8 and below

  Activations(const cpu::Kernels& k, int bits, int64_t tokens) {
    int8.resize(tokens, kCols);
    on_grid.resize(tokens, kCols);
    const auto grid = ActivationGrid::of(-2.0f, 2.5f, std::min(bits, 8));
    Rng rng(2);
    std::vector<float> row(kCols);
    for (int64_t m = 0; m < tokens; ++m) {
      for (float& v : row) v = rng.spread();
      k.quantize_row(row.data(), kCols, int8.row_codes(m), int8.row_scales(m), int8.row_sums(m),
                     int8.blocks);
      k.quantize_row_to(grid, row.data(), kCols, on_grid.row_codes(m), on_grid.row_sums(m),
                        on_grid.blocks);
      on_grid.scales[size_t(m)] = grid.scale;
      on_grid.shifts[size_t(m)] = grid.shift();
    }
  }
};

/// Threads share out the panels of each tensor, as a linear's pieces are shared out.
void packed(benchmark::State& state, const cpu::Kernels* k, Scheme scheme, uint64_t rows,
            uint64_t bytes, int64_t tokens) {
  static std::unique_ptr<Tensors> tensors;
  if (state.thread_index() == 0) {
    tensors = std::make_unique<Tensors>(packing_of(scheme), rows, bytes);
  }
  const Activations x(*k, scheme.activation_bits, tokens);
  const std::vector<double> live_sums(rows, 0.5);
  std::vector<float> y(size_t(tokens) * rows);
  uint64_t next = 0;
  for (auto _ : state) {  // the first pass waits for all threads, and so for the tensors
    const auto panels = int64_t(tensors->layout().panels);
    const int64_t n = state.threads(), i = state.thread_index();
    const int64_t begin = panels * i / n, end = panels * (i + 1) / n;
    const cpu::MutableRows out{y.data(), int64_t(rows)};
    const PackedView view = tensors->view(next++ % tensors->count());
    if (scheme.activation_bits < 16) {
      k->packed_grid(view, x.on_grid, live_sums.data(), nullptr, tokens, begin, end, out);
    } else {
      k->packed_int8(view, x.int8, nullptr, tokens, begin, end, out);
    }
    benchmark::ClobberMemory();
  }
  // Counters of all threads are added up; each has done its share of the rows.
  const double share = double(state.iterations()) / state.threads();
  const double weights = double(rows) * kCols * share;
  using benchmark::Counter;
  state.counters["weights"] = Counter(weights, Counter::kIsRate);
  state.counters["macs"] = Counter(weights * double(tokens), Counter::kIsRate);
  state.counters["bytes"] = Counter(double(tensors->layout().bytes) * share, Counter::kIsRate);
}

void add(const cpu::Kernels* k, const char* scheme, bool cache, int64_t tokens) {
  const Scheme s = Scheme::parse(scheme);
  const uint64_t rows = cache ? kCacheRows : 2048;
  const std::string name =
      fmt::format("{}/{}/{}/tokens:{}", k->name, scheme, cache ? "cache" : "memory", tokens);
  auto* b = benchmark::RegisterBenchmark(name.c_str(), packed, k, s, rows, cache ? 0 : kMemoryBytes,
                                         tokens);
  b->UseRealTime()->Threads(1);
  if (!cache) b->Threads(2);
}

/// One KV head's cache of contents that do not matter: floats, or codes and their grids.
struct FloatCache {
  static constexpr const char* kName = "";
  std::vector<f16> keys, values;

  explicit FloatCache(size_t positions, size_t head_dim)
      : keys(positions * head_dim, to_f16(0.01f)), values(positions * head_dim, to_f16(1.0f)) {}
  cpu::KvView<f16> view() const { return {keys.data(), values.data()}; }
  double bytes() const { return 4.0 * double(keys.size()); }
  static auto kernel(const cpu::Kernels& k) { return k.attend_f16; }
};

struct CodeCache {
  static constexpr const char* kName = "-kv8";
  std::vector<uint8_t> keys, values;
  std::vector<f16> grids;

  explicit CodeCache(size_t positions, size_t head_dim)
      : keys(positions * head_dim, 3),
        values(positions * head_dim, 4),
        grids(positions, to_f16(0.01f)) {}
  cpu::KvCodes view() const {
    return {{keys.data(), values.data()}, grids.data(), grids.data(), grids.data(), grids.data()};
  }
  double bytes() const { return 2.0 * double(keys.size()); }
  static auto kernel(const cpu::Kernels& k) { return k.attend_codes; }
};

/// Attention over stretches of 256 positions, as the backend cuts them: `positions` of one KV head.
template <class Cache>
void attention(benchmark::State& state, const cpu::Kernels* k, int64_t queries, int64_t head_dim,
               int64_t positions) {
  constexpr int64_t kStretch = 256;
  const Cache cache{size_t(positions), size_t(head_dim)};
  const std::vector<float> q(size_t(queries * head_dim), 0.1f);
  std::vector<float> out(q.size()), scores(size_t(queries * kStretch));
  std::vector<cpu::AttentionPart> parts;
  for (int64_t i = 0; i < queries; ++i) parts.push_back({0, 0, out.data() + i * head_dim});
  const std::vector<cpu::Sight> sights(size_t(queries), cpu::Sight{.first = 0, .end = positions});
  for (auto _ : state) {
    for (int64_t t = 0; t < positions; t += kStretch) {
      const cpu::Stretch stretch = {t, t + kStretch,
                                    cache.keys.data() + (t + kStretch) % positions * head_dim};
      Cache::kernel (*k)(q.data(), queries, head_dim, cache.view(), stretch, sights.data(),
                         scores.data(), parts.data());
    }
    benchmark::ClobberMemory();
  }
  const double products = 2.0 * double(queries * head_dim * positions);  // q k and p v
  using benchmark::Counter;
  state.counters["macs"] = Counter(products, Counter::kIsIterationInvariantRate);
  state.counters["bytes"] = Counter(cache.bytes(), Counter::kIsIterationInvariantRate);
}

template <class Cache>
void add_attention(const cpu::Kernels* k, int64_t queries, int64_t head_dim, bool cache) {
  const int64_t positions = cache ? 256 : int64_t(1) << 20;
  const std::string name = fmt::format("{}/attention{}/{}/dim:{}/queries:{}", k->name, Cache::kName,
                                       cache ? "cache" : "memory", head_dim, queries);
  benchmark::RegisterBenchmark(name.c_str(), attention<Cache>, k, queries, head_dim, positions)
      ->UseRealTime();
}

}  // namespace

int main(int argc, char** argv) {
  for (const cpu::Kernels* k : cpu::available_kernels()) {
    if (k->name == "scalar") continue;  // the truth, not a contender
    for (const char* scheme :
         {"w2a16g128", "w2*a16g192", "w3a16g128", "w4a16g128", "w4a16g64", "w4a16g32", "w5a16g128",
          "w6a16g128", "w7a16g128", "w8a16g128", "w2a8g128", "w4a8g128", "w4a8", "w4a4", "w8a8"}) {
      for (int64_t tokens : {1, 2, 4, 8, 128}) add(k, scheme, true, tokens);
      for (int64_t tokens : {1, 8}) add(k, scheme, false, tokens);
    }
    for (int64_t queries : {1, 2, 3, 4, 8, 24}) {
      for (int64_t dim : {64, 128}) {
        for (bool cache : {true, false}) {
          add_attention<FloatCache>(k, queries, dim, cache);
          add_attention<CodeCache>(k, queries, dim, cache);
        }
      }
    }
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
