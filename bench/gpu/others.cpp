#include <algorithm>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "bench/gpu/kernel_bench.h"
#include "bench/gpu/timing.h"
#include "kernels/cuda/kernels.h"

namespace oq {
namespace {

constexpr int kHeads = 32, kDim = 128, kHidden = kHeads * kDim;  ///< LLaMA-7B's
constexpr int kVocab = 32000;
constexpr int kMostCopies = 64;
constexpr int kLaunches = 64;
const std::string kTable = "Other kernels, at LLaMA-7B's sizes";

Results::Json columns_of(const KernelBench& bench, double time, double bytes) {
  return {{"us", time * 1e6},
          {"GB/s", bytes / time / 1e9},
          {"(t0 + bytes / bandwidth) / time", bench.limit(bytes) / time}};
}

struct Kv {
  const char* name;
  cuda::KvType type;
  int bits;
  bool has_grids() const { return bits <= 8; }
};
constexpr Kv kF16 = {"f16", cuda::KvType::f16, 16};
constexpr Kv kKinds[] = {
    kF16, {"8-bit", cuda::KvType::codes8, 8}, {"4-bit", cuda::KvType::codes4, 4}};

struct Heads {
  const char* name;
  int heads, kv_heads, dim;
  int width() const { return heads * dim; }
  int qkv_width() const { return (heads + 2 * kv_heads) * dim; }
};
constexpr Heads kLlama = {"", kHeads, kHeads, kDim};
constexpr Heads kGrouped = {", 32 heads on 8", 32, 8, 128};               // LLaMA-3-8B's
constexpr Heads kSingle = {", 71 heads on 1, 64 dimensions", 71, 1, 64};  // Falcon-7B's

/// One sequence's `rows` last of `context` positions attend to all before them. Caches are cold.
class Attention {
 public:
  Attention(KernelBench& bench, const Heads& h, const Kv& kv, int context, int rows)
      : cells_(size_t(h.kv_heads) * size_t(context) * size_t(h.dim) / 8 *
               size_t(cuda::kv_chunk_bytes(kv.type))),
        grids_(kv.has_grids() ? size_t(h.kv_heads) * size_t(context) * 8 : 0),
        copies_(std::clamp(int(kColdBytes / size_t(bytes())), 2, kMostCopies)),
        cache_(bench.random_numbers(size_t(copies_) * size_t(bytes()))),
        qkv_(bench.random_numbers(size_t(rows) * size_t(h.qkv_width()) * 4)),
        turns_(bench.random_numbers(size_t(context) * size_t(h.dim) * 4)),
        out_(size_t(rows) * size_t(h.width()) * 4) {
    const int stretches = context / cuda::kKvStretch;
    if (rows == 1) {  // what merges the stretches of a split
      parts_ = cuda::Memory(size_t(h.heads) * size_t(stretches) * size_t(h.dim + 2) * 4);
      arrived_ = cuda::Memory(size_t(h.kv_heads) * 4);
      cuda::clear(bench.stream, arrived_.data(), arrived_.bytes());
    }
    std::vector<int32_t> lists = {0, rows};  // run_first, then order, positions, sequences
    for (int m = 0; m < rows; ++m) lists.push_back(m);
    for (int m = 0; m < rows; ++m) lists.push_back(context - rows + m);
    lists.resize(lists.size() + size_t(rows), 0);
    lists_ = cuda::uploaded(bench.stream, std::span<const int32_t>(lists));
    const auto* list = lists_.as<int32_t>();
    args_ = {.kv = {.type = kv.type,
                    .bits = kv.bits,
                    .positions = context,
                    .kv_heads = h.kv_heads,
                    .dim = h.dim,
                    .padded_dim = h.dim,
                    .keys = nullptr,
                    .values = nullptr,
                    .grids = nullptr},
             .qkv = qkv_.as<float>(),
             .qkv_stride = h.qkv_width(),
             .out = out_.as<float>(),
             .out_stride = h.width(),
             .heads = h.heads,
             .window = 0,
             .rotations = turns_.as<float>(),
             .rope_dim = h.dim,
             .alibi = nullptr,
             .alibi_stride = 0,
             .query_bits = 16,
             .runs = 1,
             .run_first = list,
             .order = list + 2,
             .positions = list + 2 + rows,
             .sequences = list + 2 + 2 * rows,
             .rows = rows,
             .longest_run = rows,
             .stretches = stretches,
             .parts = parts_.as<float>(),
             .arrived = arrived_.as<uint32_t>()};
  }

  double bytes() const { return double(2 * cells_ + grids_); }  ///< of one cache
  int copies() const { return copies_; }
  const cuda::AttentionArgs& args(int i) {
    std::byte* at = cache_.data() + size_t(i % copies_) * (2 * cells_ + grids_);
    args_.kv.keys = at;
    args_.kv.values = at + cells_;
    args_.kv.grids = reinterpret_cast<uint16_t*>(at + 2 * cells_);
    return args_;
  }

 private:
  size_t cells_, grids_;  ///< bytes
  int copies_;
  cuda::Memory cache_, qkv_, turns_, out_, parts_, arrived_, lists_;
  cuda::AttentionArgs args_{};
};

void measure_decode_attention(KernelBench& bench, const Heads& heads, const Kv& kv, int context) {
  bench.row(
      kTable,
      fmt::format("attention of one token, {} cache, {} positions{}", kv.name, context, heads.name),
      [&] {
        Attention a(bench, heads, kv, context, 1);
        const double time = time_graph(bench.stream, a.copies(),
                                       [&](int i) { cuda::attention(bench.stream, a.args(i)); });
        return columns_of(bench, time, a.bytes());
      });
}

void measure_attention(KernelBench& bench) {
  for (const Kv& kv : kKinds) {
    for (const int context : {512, 2048}) measure_decode_attention(bench, kLlama, kv, context);
  }
  for (const Heads& heads : {kGrouped, kSingle}) {
    measure_decode_attention(bench, heads, kF16, 2048);
  }
  for (const int rows : {512, 2048}) {
    bench.row(kTable, fmt::format("attention of a prompt of {}, f16 cache", rows), [&] {
      Attention a(bench, kLlama, kF16, rows, rows);
      const double time = time_stream(
          bench.stream, 1, [&](int i) { cuda::flash_attention(bench.stream, a.args(i)); });
      // Half of rows x rows, queries with keys and probabilities with values.
      const double products = 2.0 * rows * rows / 2 * kHidden;
      return Results::Json{{"us", time * 1e6}, {"TFLOP/s", 2 * products / time / 1e12}};
    });
  }
}

/// A head of f16, as w16 models have: larger than the caches, so two are cold.
Results::Json measure_head(KernelBench& bench) {
  constexpr size_t kBytes = size_t(kVocab) * kHidden * 2;
  const cuda::Memory w[] = {bench.random_numbers(kBytes), bench.random_numbers(kBytes)};
  const cuda::Memory x = bench.random_numbers(kHidden * 4), y(kVocab * 4);
  cuda::DenseArgs args{};
  args.in.x = x.as<float>();
  args.in.stride = kHidden;
  args.in.tokens = 1;
  args.in.bits = 16;
  args.out.finish = cuda::Finish::store;
  args.out.y = y.as<float>();
  args.out.stride = kVocab;
  args.count = 1;
  const double time = time_graph(bench.stream, 2, [&](int i) {
    args.linears[0] = {{cuda::Dense::f16, kVocab, kHidden, kHidden, w[i].data()}, nullptr, 0};
    cuda::dense_linears(bench.stream, args);
  });
  const double fp16 = bench.cublas.fp16({kVocab, kHidden, 1});
  Results::Json columns = columns_of(bench, time, double(kBytes));
  columns["cuBLAS fp16 us"] = fp16 * 1e6;
  return columns;
}

Results::Json measure_norm(KernelBench& bench) {
  const cuda::Memory x = bench.random_numbers(kHidden * 4), w = bench.random_numbers(kHidden * 4);
  const cuda::NormRowsArgs args{.norm = {.kind = cuda::NormKind::rms,
                                         .weight = w.as<float>(),
                                         .bias = nullptr,
                                         .eps = 1e-5f,
                                         .weight_peak = 0,
                                         .bias_peak = 0},
                                .x = x.as<float>(),
                                .stride = kHidden,
                                .cols = kHidden,
                                .tokens = 1};
  const double time =
      time_graph(bench.stream, kLaunches, [&](int) { cuda::norm_rows(bench.stream, args); });
  return columns_of(bench, time, 3.0 * kHidden * 4);
}

/// `keep` 1: the likeliest alone, as greedy decoding wants.
Results::Json measure_rank(KernelBench& bench, int keep) {
  constexpr int kBlocks = (kVocab + cuda::kRankChunk - 1) / cuda::kRankChunk;
  const cuda::Memory logits = bench.random_numbers(kVocab * 4);
  const cuda::Memory parts(kBlocks * sizeof(cuda::RankPart)), out(sizeof(cuda::RankResult));
  cuda::RankArgs args{};
  args.logits = logits.as<float>();
  args.vocab = kVocab;
  args.blocks = kBlocks;
  args.keep = keep;
  args.temperature = keep == 1 ? 0.0 : 0.6;
  args.parts = parts.as<cuda::RankPart>();
  args.out = out.as<cuda::RankResult>();
  const double time =
      time_graph(bench.stream, kLaunches, [&](int) { cuda::rank(bench.stream, args); });
  return columns_of(bench, time, kVocab * 4.0);
}

}  // namespace

void measure_others(KernelBench& bench) {
  measure_attention(bench);
  bench.row(kTable, fmt::format("a head of f16, {}x{}", kVocab, kHidden),
            [&] { return measure_head(bench); });
  bench.row(kTable, "norm of one row", [&] { return measure_norm(bench); });
  for (const int keep : {1, cuda::kRankMost}) {
    bench.row(kTable, fmt::format("the likeliest {} of {} logits", keep, kVocab),
              [&] { return measure_rank(bench, keep); });
  }
}

}  // namespace oq
