#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/activation.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/layout.h"
#include "kernels/cuda/stream.h"

/// The GPU's kernels. Every one is a row in the table of kernels.cpp, and a function here enqueues
/// it. Floats are fp32 but where a type says otherwise. Sums have a fixed order: the same call
/// gives the same bits. What a token gets does not depend on the tokens beside it, but on how many
/// there are: 1 to 4, 5 to 8, and more are three kernels (batch_linears); so are attention and
/// flash_attention, by the longest run.
namespace oq::cuda {

constexpr int kMaxTokens = 8;    ///< of one call of packed_linears or dense_linears
constexpr int kExpertRows = 64;  ///< room for each expert in lists of tokens
constexpr int kMaxLinears = 3;   ///< that share an input: q, k, v
constexpr int kKvTile = 32;      ///< positions of keys that lie side by side
constexpr int kKvStretch = 128;  ///< positions that one block attends to

/// A matrix of plain floats in device memory.
enum class Dense { f32, f16, bf16 };
struct DenseMatrix {
  Dense type;
  int rows, cols;
  int stride;  ///< elements from row to row: a multiple of 16 bytes, padded with zeros
  const void* data;
};

/// What a linear's input goes through before it meets weights.
enum class NormKind { none, rms, layer };
struct NormArgs {
  NormKind kind;               ///< all zeros: none
  const float *weight, *bias;  ///< [cols]
  float eps;
  float weight_peak, bias_peak;  ///< largest magnitudes: they bound what comes out
};

/// Rows of x that a linear multiplies. `stride` is a multiple of 4.
struct InputArgs {
  const float* x;
  int stride;
  int tokens;           ///< how many, or how many at most where `count` says
  const int32_t* rows;  ///< which rows of x, or nullptr: the first
  NormArgs norm;
  int bits;  ///< below 16: to be put onto the ActivationGrid of the live columns (integer.h)
  // Experts: block_y e works on expert e alone.
  const int32_t* count;   ///< [experts] tokens that chose it, or nullptr
  int64_t expert_stride;  ///< floats between the experts' inputs; `rows` has 64 for each
  int first = 0;          ///< of the tokens: those before it are another call's
  // Per tensor: one range for the rows of a run.
  bool per_tensor = false;
  const int32_t* runs = nullptr;      ///< [rows] of the batch: the run that each belongs to
  const int32_t* run_rows = nullptr;  ///< experts: as `rows`, which rows of `runs`
};

enum class Finish { store, add, multiply, activate };
struct OutputArgs {
  Finish finish;  ///< y = , y +=, y x=, or y = activation(first linear) x second, if there is one
  float* y;
  int stride;
  Activation activation;
  int64_t expert_stride;
};

/// One linear of up to three that share an input and stand side by side in y, or, with
/// Finish::activate, that are multiplied.
template <class Matrix>
struct LinearArgs {
  Matrix matrix;
  const float* bias;  ///< [rows] or nullptr
  int column;         ///< of y
};
template <class Matrix>
struct LinearsArgs {
  InputArgs in;
  OutputArgs out;
  int count;
  LinearArgs<Matrix> linears[kMaxLinears];
  const LinearArgs<Matrix>* experts;  ///< [experts][count] on the device, or nullptr
  int expert_count;
  int weak_columns = 0;  ///< the most that any of them has; only integer.h asks
  int slab_bytes = 0;    ///< of shared memory for activations; filled in where kernels start
};
using PackedArgs = LinearsArgs<PackedMatrix>;
using DenseArgs = LinearsArgs<DenseMatrix>;

/// All linears of one call have the same field_bits and five_levels, or the same type.
/// With `experts`, linears[0] has the largest shape among them. in.bits is 16: what a scheme
/// quantizes goes through integer.h; other calls throw.
void packed_linears(Stream& stream, const PackedArgs& args);
void dense_linears(Stream& stream, const DenseArgs& args);

/// packed_linears for any number of tokens, experts' lists of up to 64 (batch.h has the plan).
/// With `experts`, linears[] also have the most weak columns among them.
enum class BatchEngine {
  tiles,  ///< mma on packed weights, 64 tokens at once
  gemm,   ///< weights become f16, then cuBLAS; never with experts
};
struct BatchHow {
  BatchEngine engine;
  bool precise;  ///< activations as hi + lo, 22 bits; else f16. `gemm` is never precise
  int rows =
      0;  ///< of weights at once with `gemm`, a multiple of 16; 0: as many as keep a device busy
};
/// What calls need beside their arguments: grows as they ask, and serves one stream.
struct BatchSpace {
  Memory memory;
  std::unique_ptr<Gemm> gemm;
};
size_t batch_bytes(const PackedArgs& args, BatchHow how);
void batch_linears(Stream& stream, const PackedArgs& args, BatchHow how, BatchSpace& space);
/// dense_linears for any number of tokens, never with experts: weights of f16 by cuBLAS as they
/// lie, activations as f16.
size_t batch_bytes(const DenseArgs& args, int rows = 0);
void batch_linears(Stream& stream, const DenseArgs& args, BatchSpace& space, int rows = 0);

/// A file's tensor, as uploaded, into the matrix's memory.
void repack(Stream& stream, const PackedLayout& layout, const std::byte* file_bytes,
            const PackedMatrix& matrix);

/// A KV cache of one layer and all sequences: [sequence][kv head], then keys in tiles of 32
/// positions, [tile][dim / 8][32][8], and values [position][dim], dims padded to 8. Codes have
/// grids f16 {key scale, key low, value scale, value low} [position][4]; those of up to 4 bits
/// stand two to a byte, the even dimension low.
enum class KvType { f32, f16, codes8, codes4 };
/// Bytes of 8 dimensions.
constexpr int kv_chunk_bytes(KvType type) {
  return type == KvType::f32 ? 32 : type == KvType::f16 ? 16 : type == KvType::codes8 ? 8 : 4;
}
struct KvArgs {
  KvType type;
  int bits;       ///< of codes
  int positions;  ///< room for each sequence, a multiple of 128
  int kv_heads, dim, padded_dim;
  void *keys, *values;
  uint16_t* grids;
};

/// Rotates q and k of qkv rows, appends k and v, and attends: out = softmax(q k / sqrt(dim) +
/// alibi) v. Rows of one sequence stand together in `order`, a run of them; run_first[i] is the
/// first of run i in `order`.
struct AttentionArgs {
  KvArgs kv;
  const float* qkv;
  int qkv_stride;
  float* out;
  int out_stride;
  int heads;
  int window;              ///< 0: all
  const float* rotations;  ///< [context][rope_dim / 2][cosine, sine] or nullptr
  int rope_dim;
  const float* alibi;  ///< [heads][alibi_stride] or nullptr
  int alibi_stride;
  int query_bits;  ///< below 16: quantized to an ActivationGrid
  int runs;
  const int32_t* run_first;  ///< [runs + 1]
  const int32_t* order;      ///< [rows]
  const int32_t* positions;  ///< [rows] of the batch, by row
  const int32_t* sequences;
  int rows;           ///< of all runs
  int longest_run;    ///< rows
  int stretches;      ///< of 128 positions that any row sees at the most
  float* parts;       ///< scratch [rows][heads][stretches][padded_dim + 2]; of `attention`
  uint32_t* arrived;  ///< [runs][kv heads], 0 before and after; of `attention`
};
/// Split over positions: for runs of a few rows.
void attention(Stream& stream, const AttentionArgs& args);
/// The same by blocks of queries: for long runs. Heads of at most 128 dimensions, of which sm_75
/// has shared memory for 112 where the cache is not f16: can_flash says so.
constexpr int kFlashDims = 128;
bool can_flash(const Stream& stream, const KvArgs& kv);
void flash_attention(Stream& stream, const AttentionArgs& args);

/// x[m] = row tokens[m] of a table, or += with `add`.
template <class Matrix>
struct LookupArgs {
  Matrix table;
  const int32_t* index;
  int tokens;
  bool add;
  float* x;
  int stride;
};
void lookup(Stream& stream, const LookupArgs<PackedMatrix>& args);
void lookup(Stream& stream, const LookupArgs<DenseMatrix>& args);

/// x[m] = norm(x[m]) in place.
struct NormRowsArgs {
  NormArgs norm;
  float* x;
  int stride, cols, tokens;
};
void norm_rows(Stream& stream, const NormRowsArgs& args);

/// Chooses `used` experts for each token, as reference::route does. rows [experts][64] get the
/// tokens that chose each, count [experts] how many; slot and weight [tokens][experts] say where a
/// token stands in rows, -1 where it does not, and how much its expert counts.
struct RouteArgs {
  const float* logits;
  int stride, tokens, experts, used;
  int32_t *rows, *count, *slot;
  float* weight;
};
void route(Stream& stream, const RouteArgs& args);

/// x[m] += sum over a token's experts, in ascending order, of weight x out[expert][slot].
struct CombineArgs {
  const float* out;
  int64_t expert_stride;
  int out_stride, tokens, experts, cols;
  const int32_t* slot;
  const float* weight;
  float* x;
  int stride;
};
void combine(Stream& stream, const CombineArgs& args);

/// The likeliest tokens of one row of logits, largest logit first and the lowest id first of equal
/// ones; and the sum of exp((logit - largest) / temperature) over all, where that is above 0.
constexpr int kRankMost = 128;    ///< tokens that come out
constexpr int kRankChunk = 4096;  ///< logits of a block
constexpr int kRankBlocks = 64;   ///< at the most
struct RankPart {
  uint64_t keys[kRankMost];
  double total;
  float top;
  bool finite;
};
struct RankResult {
  double total;
  int32_t ids[kRankMost];
  float logits[kRankMost], also[kRankMost];
  int32_t finite;  ///< 0: a logit is not, and the rest says nothing
};
struct RankArgs {
  const float* logits;
  int vocab, blocks;
  int keep;  ///< 1 or kRankMost
  double temperature;
  const int32_t* also;  ///< ids whose logits come out too
  int also_count;
  RankPart* parts;  ///< scratch [blocks]
  RankResult* out;
};
void rank(Stream& stream, const RankArgs& args);

/// Words of random bits, pairs of f16 uniform in mean +- spread, or bytes of a repeated pattern.
enum class Fill { bits, halves, bytes };
struct FillArgs {
  Fill kind = Fill::bits;
  uint32_t* to = nullptr;
  int64_t words = 0;
  uint64_t seed = 0;
  float mean = 0, spread = 0;
  uint64_t pattern = 0;  ///< its first `period` bytes
  int period = 1;
};
void fill(Stream& stream, const FillArgs& args);

/// An empty kernel.
void run_nothing(Stream& stream);

/// Reads `bytes`, a multiple of 16, once: sums[thread] is the xor of a thread's words, and all of
/// them together that of all words.
struct ReadArgs {
  const void* from;
  int64_t bytes;
  int blocks;      ///< of kReadThreads threads
  uint32_t* sums;  ///< [blocks][kReadThreads]
};
constexpr int kReadThreads = 256;
void read_memory(Stream& stream, const ReadArgs& args);

struct CopyArgs {
  const void* from;
  void* to;
  int64_t bytes;  ///< a multiple of 16
  int blocks;
};
void copy_memory(Stream& stream, const CopyArgs& args);

/// Every row of the table and how often it ran in this process: what a test holds to "all".
struct Reached {
  std::string name;
  uint64_t runs;
};
std::vector<Reached> reached();

}  // namespace oq::cuda
