#include "kernels/cuda/kernels.h"

#include <array>
#include <atomic>
#include <span>

#include "format/error.h"
#include "kernels/cuda/batch.h"
#include "kernels/cuda/integer.h"

namespace oq::cuda {

template <int kBits, bool kFive, bool kWide>
void start_packed(Stream&, const PackedArgs&);
template <int kBits, bool kFive, IntegerKernel kKernel>
void start_integers(Stream&, const IntegerArgs&);
void start_quantize(Stream&, const IntegerArgs&);
void start_values(Stream&, const ValuesArgs&);
void start_dense_f32(Stream&, const DenseArgs&);
void start_dense_f16(Stream&, const DenseArgs&);
void start_dense_bf16(Stream&, const DenseArgs&);
template <int kBits, bool kFive>
void start_batch(Stream&, const BatchArgs&);
template <int kBits, bool kFive>
void start_dequantize(Stream&, const BatchArgs&);
void start_prepare_fragments(Stream&, const BatchArgs&);
void start_prepare_rows(Stream&, const BatchArgs&);
void start_finish(Stream&, const BatchArgs&);
template <KvType kType>
void start_attention(Stream&, const AttentionArgs&);
template <KvType kType>
void start_flash(Stream&, const AttentionArgs&);
void start_repack(Stream&, const PackedLayout&, const std::byte*, const PackedMatrix&);
void start_lookup_packed(Stream&, const LookupArgs<PackedMatrix>&);
void start_lookup_dense(Stream&, const LookupArgs<DenseMatrix>&);
void start_norm(Stream&, const NormRowsArgs&);
void start_route(Stream&, const RouteArgs&);
void start_combine(Stream&, const CombineArgs&);
void start_rank(Stream&, const RankArgs&);
void start_fill(Stream&, const FillArgs&);
void start_nothing(Stream&, const int&);
void start_read(Stream&, const ReadArgs&);
void start_copy(Stream&, const CopyArgs&);

namespace {

/// One kernel: its key among those of its op, and who starts it. `runs` counts.
template <class Key, class... Args>
struct Row {
  const char* name;
  Key key;
  void (*start)(Stream&, Args...);
  std::atomic<uint64_t> runs{0};
};

struct PackedKey {
  int field_bits;
  bool five_levels, wide;  ///< wide: 5 to 8 tokens
  friend bool operator==(const PackedKey&, const PackedKey&) = default;
};
struct WeightKey {
  int field_bits;
  bool five_levels;
  friend bool operator==(const WeightKey&, const WeightKey&) = default;
};
struct IntegerKey {
  int field_bits;
  bool five_levels;
  IntegerKernel kernel;
  friend bool operator==(const IntegerKey&, const IntegerKey&) = default;
};
struct QuantizeKey {
  Engine engine;
  bool per_tensor;
  friend bool operator==(const QuantizeKey&, const QuantizeKey&) = default;
};
enum class Only { one };

// The dispatch table: a kernel is a row here. Ops have their keys, and nothing else chooses.
std::array<Row<PackedKey, const PackedArgs&>, 16> packed_rows = {{
    {"packed linear, w2, 1 to 4 tokens", {2, false, false}, start_packed<2, false, false>},
    {"packed linear, w2, 5 to 8 tokens", {2, false, true}, start_packed<2, false, true>},
    {"packed linear, w3, 1 to 4 tokens", {3, false, false}, start_packed<3, false, false>},
    {"packed linear, w3, 5 to 8 tokens", {3, false, true}, start_packed<3, false, true>},
    {"packed linear, w4, 1 to 4 tokens", {4, false, false}, start_packed<4, false, false>},
    {"packed linear, w4, 5 to 8 tokens", {4, false, true}, start_packed<4, false, true>},
    {"packed linear, w5, 1 to 4 tokens", {5, false, false}, start_packed<5, false, false>},
    {"packed linear, w5, 5 to 8 tokens", {5, false, true}, start_packed<5, false, true>},
    {"packed linear, w6, 1 to 4 tokens", {6, false, false}, start_packed<6, false, false>},
    {"packed linear, w6, 5 to 8 tokens", {6, false, true}, start_packed<6, false, true>},
    {"packed linear, w7, 1 to 4 tokens", {7, false, false}, start_packed<7, false, false>},
    {"packed linear, w7, 5 to 8 tokens", {7, false, true}, start_packed<7, false, true>},
    {"packed linear, w8, 1 to 4 tokens", {8, false, false}, start_packed<8, false, false>},
    {"packed linear, w8, 5 to 8 tokens", {8, false, true}, start_packed<8, false, true>},
    {"packed linear, w2*, 1 to 4 tokens", {7, true, false}, start_packed<7, true, false>},
    {"packed linear, w2*, 5 to 8 tokens", {7, true, true}, start_packed<7, true, true>},
}};
std::array<Row<IntegerKey, const IntegerArgs&>, 24> integer_rows = {{
    {"integer linear, w2, bytes, 1 to 8 tokens",
     {2, false, IntegerKernel::narrow},
     start_integers<2, false, IntegerKernel::narrow>},
    {"integer linear, w2, bytes, more tokens",
     {2, false, IntegerKernel::wide},
     start_integers<2, false, IntegerKernel::wide>},
    {"integer linear, w2, planes",
     {2, false, IntegerKernel::planes},
     start_integers<2, false, IntegerKernel::planes>},
    {"integer linear, w3, bytes, 1 to 8 tokens",
     {3, false, IntegerKernel::narrow},
     start_integers<3, false, IntegerKernel::narrow>},
    {"integer linear, w3, bytes, more tokens",
     {3, false, IntegerKernel::wide},
     start_integers<3, false, IntegerKernel::wide>},
    {"integer linear, w3, planes",
     {3, false, IntegerKernel::planes},
     start_integers<3, false, IntegerKernel::planes>},
    {"integer linear, w4, bytes, 1 to 8 tokens",
     {4, false, IntegerKernel::narrow},
     start_integers<4, false, IntegerKernel::narrow>},
    {"integer linear, w4, bytes, more tokens",
     {4, false, IntegerKernel::wide},
     start_integers<4, false, IntegerKernel::wide>},
    {"integer linear, w4, planes",
     {4, false, IntegerKernel::planes},
     start_integers<4, false, IntegerKernel::planes>},
    {"integer linear, w5, bytes, 1 to 8 tokens",
     {5, false, IntegerKernel::narrow},
     start_integers<5, false, IntegerKernel::narrow>},
    {"integer linear, w5, bytes, more tokens",
     {5, false, IntegerKernel::wide},
     start_integers<5, false, IntegerKernel::wide>},
    {"integer linear, w5, planes",
     {5, false, IntegerKernel::planes},
     start_integers<5, false, IntegerKernel::planes>},
    {"integer linear, w6, bytes, 1 to 8 tokens",
     {6, false, IntegerKernel::narrow},
     start_integers<6, false, IntegerKernel::narrow>},
    {"integer linear, w6, bytes, more tokens",
     {6, false, IntegerKernel::wide},
     start_integers<6, false, IntegerKernel::wide>},
    {"integer linear, w6, planes",
     {6, false, IntegerKernel::planes},
     start_integers<6, false, IntegerKernel::planes>},
    {"integer linear, w7, bytes, 1 to 8 tokens",
     {7, false, IntegerKernel::narrow},
     start_integers<7, false, IntegerKernel::narrow>},
    {"integer linear, w7, bytes, more tokens",
     {7, false, IntegerKernel::wide},
     start_integers<7, false, IntegerKernel::wide>},
    {"integer linear, w7, planes",
     {7, false, IntegerKernel::planes},
     start_integers<7, false, IntegerKernel::planes>},
    {"integer linear, w8, bytes, 1 to 8 tokens",
     {8, false, IntegerKernel::narrow},
     start_integers<8, false, IntegerKernel::narrow>},
    {"integer linear, w8, bytes, more tokens",
     {8, false, IntegerKernel::wide},
     start_integers<8, false, IntegerKernel::wide>},
    {"integer linear, w8, planes",
     {8, false, IntegerKernel::planes},
     start_integers<8, false, IntegerKernel::planes>},
    {"integer linear, w2*, bytes, 1 to 8 tokens",
     {7, true, IntegerKernel::narrow},
     start_integers<7, true, IntegerKernel::narrow>},
    {"integer linear, w2*, bytes, more tokens",
     {7, true, IntegerKernel::wide},
     start_integers<7, true, IntegerKernel::wide>},
    {"integer linear, w2*, planes",
     {7, true, IntegerKernel::planes},
     start_integers<7, true, IntegerKernel::planes>},
}};
std::array<Row<QuantizeKey, const IntegerArgs&>, 4> quantize_rows = {{
    {"quantize, bytes, per token", {Engine::bytes, false}, start_quantize},
    {"quantize, bytes, per tensor", {Engine::bytes, true}, start_quantize},
    {"quantize, planes, per token", {Engine::planes, false}, start_quantize},
    {"quantize, planes, per tensor", {Engine::planes, true}, start_quantize},
}};
std::array<Row<bool, const ValuesArgs&>, 2> values_rows = {{
    {"quantize to values, per token", false, start_values},
    {"quantize to values, per tensor", true, start_values},
}};
std::array<Row<Dense, const DenseArgs&>, 3> dense_rows = {{
    {"dense linear, f32", Dense::f32, start_dense_f32},
    {"dense linear, f16", Dense::f16, start_dense_f16},
    {"dense linear, bf16", Dense::bf16, start_dense_bf16},
}};
std::array<Row<WeightKey, const BatchArgs&>, 8> batch_rows = {{
    {"batch linear, w2", {2, false}, start_batch<2, false>},
    {"batch linear, w3", {3, false}, start_batch<3, false>},
    {"batch linear, w4", {4, false}, start_batch<4, false>},
    {"batch linear, w5", {5, false}, start_batch<5, false>},
    {"batch linear, w6", {6, false}, start_batch<6, false>},
    {"batch linear, w7", {7, false}, start_batch<7, false>},
    {"batch linear, w8", {8, false}, start_batch<8, false>},
    {"batch linear, w2*", {7, true}, start_batch<7, true>},
}};
std::array<Row<WeightKey, const BatchArgs&>, 8> dequantize_rows = {{
    {"dequantize, w2", {2, false}, start_dequantize<2, false>},
    {"dequantize, w3", {3, false}, start_dequantize<3, false>},
    {"dequantize, w4", {4, false}, start_dequantize<4, false>},
    {"dequantize, w5", {5, false}, start_dequantize<5, false>},
    {"dequantize, w6", {6, false}, start_dequantize<6, false>},
    {"dequantize, w7", {7, false}, start_dequantize<7, false>},
    {"dequantize, w8", {8, false}, start_dequantize<8, false>},
    {"dequantize, w2*", {7, true}, start_dequantize<7, true>},
}};
std::array<Row<BatchEngine, const BatchArgs&>, 2> prepare_rows = {{
    {"prepare, fragments", BatchEngine::tiles, start_prepare_fragments},
    {"prepare, rows of f16", BatchEngine::gemm, start_prepare_rows},
}};
std::array<Row<KvType, const AttentionArgs&>, 4> attention_rows = {{
    {"attention, f32 cache", KvType::f32, start_attention<KvType::f32>},
    {"attention, f16 cache", KvType::f16, start_attention<KvType::f16>},
    {"attention, 8-bit cache", KvType::codes8, start_attention<KvType::codes8>},
    {"attention, 4-bit cache", KvType::codes4, start_attention<KvType::codes4>},
}};
std::array<Row<KvType, const AttentionArgs&>, 4> flash_rows = {{
    {"flash attention, f32 cache", KvType::f32, start_flash<KvType::f32>},
    {"flash attention, f16 cache", KvType::f16, start_flash<KvType::f16>},
    {"flash attention, 8-bit cache", KvType::codes8, start_flash<KvType::codes8>},
    {"flash attention, 4-bit cache", KvType::codes4, start_flash<KvType::codes4>},
}};
template <class... Args>
using Single = std::array<Row<Only, Args...>, 1>;
Single<const BatchArgs&> finish_rows = {{{"finish of a batch", Only::one, start_finish}}};
Single<const PackedLayout&, const std::byte*, const PackedMatrix&> repack_rows = {
    {{"repack", Only::one, start_repack}}};
Single<const LookupArgs<PackedMatrix>&> lookup_packed_rows = {
    {{"lookup in a packed table", Only::one, start_lookup_packed}}};
Single<const LookupArgs<DenseMatrix>&> lookup_dense_rows = {
    {{"lookup in a dense table", Only::one, start_lookup_dense}}};
Single<const NormRowsArgs&> norm_rows_rows = {{{"norm of rows", Only::one, start_norm}}};
Single<const RouteArgs&> route_rows = {{{"route", Only::one, start_route}}};
Single<const CombineArgs&> combine_rows = {{{"combine experts", Only::one, start_combine}}};
Single<const RankArgs&> rank_rows = {{{"rank", Only::one, start_rank}}};
Single<const FillArgs&> fill_rows = {{{"fill", Only::one, start_fill}}};
Single<const int&> nothing_rows = {{{"nothing", Only::one, start_nothing}}};
Single<const ReadArgs&> read_rows = {{{"read", Only::one, start_read}}};
Single<const CopyArgs&> copy_rows = {{{"copy", Only::one, start_copy}}};

/// Calls the row of this key.
template <class Rows, class Key, class... Args>
void dispatch(Rows& rows, Key key, Stream& stream, const Args&... args) {
  for (auto& row : rows) {
    if (!(row.key == key)) continue;
    ++row.runs;
    return row.start(stream, args...);
  }
  throw Error({.what = "the dispatch table has no kernel for this",
               .where = rows.front().name,
               .hint = "add a row to kernels/cuda/kernels.cpp"});
}

template <class Rows>
void count(const Rows& rows, std::vector<Reached>& list) {
  for (const auto& row : rows) list.push_back({row.name, row.runs});
}

void check_not_quantized(const InputArgs& in) {
  if (in.bits >= 16) return;
  throw Error({.what = "these kernels take activations as they are",
               .where = "cuda linears",
               .expected = "16 bits",
               .found = std::to_string(in.bits),
               .hint = "quantize them first (kernels/cuda/integer.h)"});
}

}  // namespace

void packed_linears(Stream& stream, const PackedArgs& a) {
  check_not_quantized(a.in);
  const PackedMatrix& m = a.linears[0].matrix;
  dispatch(packed_rows, PackedKey{m.field_bits, m.five_levels, a.in.tokens > 4}, stream, a);
}
void quantize(Stream& stream, const IntegerArgs& a) {
  dispatch(quantize_rows, QuantizeKey{a.engine, a.linears.in.per_tensor}, stream, a);
}
void integer_linears(Stream& stream, const IntegerArgs& a) {
  const PackedMatrix& m = a.linears.linears[0].matrix;
  const IntegerKernel kernel = a.engine == Engine::planes         ? IntegerKernel::planes
                               : a.linears.in.tokens > kMaxTokens ? IntegerKernel::wide
                                                                  : IntegerKernel::narrow;
  dispatch(integer_rows, IntegerKey{m.field_bits, m.five_levels, kernel}, stream, a);
}
void quantize_values(Stream& stream, const ValuesArgs& a) {
  dispatch(values_rows, a.in.per_tensor, stream, a);
}
void dense_linears(Stream& stream, const DenseArgs& a) {
  check_not_quantized(a.in);
  dispatch(dense_rows, a.linears[0].matrix.type, stream, a);
}
void batch_prepare(Stream& stream, const BatchArgs& a) {
  check_not_quantized(a.in);
  dispatch(prepare_rows, a.plan.how.engine, stream, a);
}
void batch_multiply(Stream& stream, const BatchArgs& a) {
  const PackedMatrix& m = a.linear.matrix;
  dispatch(batch_rows, WeightKey{m.field_bits, m.five_levels}, stream, a);
}
void batch_dequantize(Stream& stream, const BatchArgs& a) {
  const PackedMatrix& m = a.linear.matrix;
  dispatch(dequantize_rows, WeightKey{m.field_bits, m.five_levels}, stream, a);
}
void batch_finish(Stream& stream, const BatchArgs& a) {
  dispatch(finish_rows, Only::one, stream, a);
}
void attention(Stream& stream, const AttentionArgs& a) {
  dispatch(attention_rows, a.kv.type, stream, a);
}
void flash_attention(Stream& stream, const AttentionArgs& a) {
  dispatch(flash_rows, a.kv.type, stream, a);
}
void repack(Stream& stream, const PackedLayout& layout, const std::byte* file_bytes,
            const PackedMatrix& matrix) {
  dispatch(repack_rows, Only::one, stream, layout, file_bytes, matrix);
}
void lookup(Stream& stream, const LookupArgs<PackedMatrix>& a) {
  dispatch(lookup_packed_rows, Only::one, stream, a);
}
void lookup(Stream& stream, const LookupArgs<DenseMatrix>& a) {
  dispatch(lookup_dense_rows, Only::one, stream, a);
}
void norm_rows(Stream& stream, const NormRowsArgs& a) {
  dispatch(norm_rows_rows, Only::one, stream, a);
}
void route(Stream& stream, const RouteArgs& a) { dispatch(route_rows, Only::one, stream, a); }
void combine(Stream& stream, const CombineArgs& a) { dispatch(combine_rows, Only::one, stream, a); }
void rank(Stream& stream, const RankArgs& a) { dispatch(rank_rows, Only::one, stream, a); }
void fill(Stream& stream, const FillArgs& a) { dispatch(fill_rows, Only::one, stream, a); }
void run_nothing(Stream& stream) { dispatch(nothing_rows, Only::one, stream, 0); }
void read_memory(Stream& stream, const ReadArgs& a) { dispatch(read_rows, Only::one, stream, a); }
void copy_memory(Stream& stream, const CopyArgs& a) { dispatch(copy_rows, Only::one, stream, a); }

std::vector<Reached> reached() {
  std::vector<Reached> list;
  count(packed_rows, list);
  count(integer_rows, list);
  count(quantize_rows, list);
  count(values_rows, list);
  count(dense_rows, list);
  count(batch_rows, list);
  count(dequantize_rows, list);
  count(prepare_rows, list);
  count(finish_rows, list);
  count(attention_rows, list);
  count(flash_rows, list);
  count(repack_rows, list);
  count(lookup_packed_rows, list);
  count(lookup_dense_rows, list);
  count(norm_rows_rows, list);
  count(route_rows, list);
  count(combine_rows, list);
  count(rank_rows, list);
  count(fill_rows, list);
  count(nothing_rows, list);
  count(read_rows, list);
  count(copy_rows, list);
  return list;
}

}  // namespace oq::cuda
