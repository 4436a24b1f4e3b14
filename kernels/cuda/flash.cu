/// Attention for long runs of rows: blocks of 64 queries against the KV cache, tile by tile, with
/// scores that never leave registers.
///
/// Regime: prefill. Bound: tensor cores and the work of softmax; the cache is read once for every
///   64 queries of a KV head.
/// Layout: the cache's (kernels.h). A tile of 32 positions goes to shared memory as f16, keys row
///   by row, values transposed, so that both are B operands of an mma; rows are padded by 16 bytes,
///   and no two lanes meet in a bank. What f16 does not hold exactly (f32 and codes times their
///   grids) lies there as hi + lo, as queries and probabilities always do: three products of four,
///   the fourth is 2^-22 of the first. hi + lo of keys and values keep 2^-25 at the least, whatever
///   their size.
/// Work split: RoPE and the append are a launch of their own, for every block reads what others
///   append. Then a block takes 64 of the (row, head of the group) pairs of one run and KV head,
///   the last of a run first, for they see most; a warp 16 of them.
/// Sums: fp32, by online softmax in order of tiles. A tile that a query does not see adds zeros, so
///   its bits do not depend on the other queries of its block.
/// Measured: not measured.
/// Lost: ldmatrix, whose transposing form would spare the transposed stores; copies ahead by
///   cp.async, which cannot convert. Two or three blocks on an SM wait for each other instead.

#include "kernels/cuda/input.h"
#include "kernels/cuda/kv_rows.h"

namespace oq::cuda {
namespace {

constexpr int kFlashWarps = 4;
constexpr int kFlashThreads = 32 * kFlashWarps;
constexpr int kFlashQueries = 16 * kFlashWarps;
constexpr int kPad = 8;  ///< halves behind each row in shared memory
/// Probabilities are worth 2^14 times themselves until they are divided by their sum, so that as hi
/// + lo those down to 2^-17 of the largest keep all of their 22 bits: 14 ln 2.
constexpr float kRaise = 9.7040605f;
constexpr int kValueStride = kKvTile + kPad;
constexpr int kDimTiles = kFlashDims / 8;

/// f16 numbers that stand for one of the cache.
template <KvType kType>
constexpr int kPlanes = kType == KvType::f16 ? 1 : 2;

/// Halves in shared memory: queries [hi, lo][64][depth + 8], keys [plane][32][depth + 8], values
/// [plane][depth][32 + 8]; then the queries' powers of two.
struct FlashShared {
  uint16_t *queries, *keys, *values;
  float* down;

  static constexpr size_t key_halves(int rows, int depth) {
    return size_t(rows) * size_t(depth + kPad);
  }
  static constexpr size_t bytes(int depth, int planes) {
    return (2 * key_halves(kFlashQueries, depth) + size_t(planes) * key_halves(kKvTile, depth) +
            size_t(planes) * size_t(depth) * kValueStride) *
               sizeof(uint16_t) +
           kFlashQueries * sizeof(float);
  }
  OQ_DEVICE FlashShared(int depth, int planes) {
    queries = reinterpret_cast<uint16_t*>(shared_memory());
    keys = queries + 2 * key_halves(kFlashQueries, depth);
    values = keys + size_t(planes) * key_halves(kKvTile, depth);
    down = reinterpret_cast<float*>(values + size_t(planes * depth) * kValueStride);
  }
};

OQ_DEVICE uint32_t two_halves(uint16_t low, uint16_t high) { return low | uint32_t(high) << 16; }
OQ_DEVICE uint32_t word_at(const uint16_t* halves) {
  return *reinterpret_cast<const uint32_t*>(halves);
}

/// 8 dimensions of a position as halves, plane by plane.
template <KvType kType>
OQ_DEVICE void load_halves(const std::byte* chunk, CellGrid grid, uint16_t out[kPlanes<kType>][8]) {
  if constexpr (kType == KvType::f16) {
    const Words4 v = *reinterpret_cast<const Words4*>(chunk);
    OQ_UNROLL
    for (int i = 0; i < 8; ++i) out[0][i] = uint16_t(v.w[i / 2] >> (i % 2 * 16));
  } else {
    float x[8];
    Cells<kType>::load(chunk, grid, x);
    OQ_UNROLL
    for (int i = 0; i < 8; ++i) {
      out[0][i] = float_to_half(x[i]);
      out[1][i] = float_to_half(x[i] - half_to_float(out[0][i]));
    }
  }
}

template <KvType kType>
class FlashBlock {
 public:
  OQ_DEVICE FlashBlock(const AttentionArgs& a, int depth, int run, int kv_head, int first_query)
      : a_(a),
        cache_(a.kv, a.sequences[a.order[a.run_first[run]]], kv_head),
        s_(depth, kPlanes<kType>),
        depth_(depth),
        kv_head_(kv_head),
        group_(a.heads / a.kv.kv_heads),
        first_row_(a.run_first[run]),
        first_query_(first_query) {
    queries_ = (a.run_first[run + 1] - first_row_) * group_;
    first_position_ = a.positions[a.order[first_row_]];
    const int last =
        first_query + kFlashQueries < queries_ ? first_query + kFlashQueries : queries_;
    last_seen_ = first_position_ + (last - 1) / group_;
  }

  OQ_DEVICE bool is_empty() const { return first_query_ >= queries_; }

  OQ_DEVICE void run() {
    for (int i = 0; i < 16; ++i) load_query(16 * warp_id() + i);
    const int first = seen_from(a_, first_position_ + first_query_ / group_) / kKvTile;
    for (int tile = first; tile <= last_seen_ / kKvTile; ++tile) {
      load_keys(tile);
      load_values(tile);
      sync_block();
      float scores[kKvTile / 8][4] = {};
      score(scores);
      normalize(tile, scores);
      weigh(scores);
      sync_block();
    }
    leave();
  }

 private:
  OQ_DEVICE int row_stride() const { return depth_ + kPad; }
  /// Of the lane: rows g and g + 8 of the warp's 16 queries.
  OQ_DEVICE static int local_query(int r) { return 16 * warp_id() + lane_id() / 4 + 8 * r; }
  OQ_DEVICE int query(int r) const { return first_query_ + local_query(r); }
  OQ_DEVICE int row_of(int query) const { return a_.order[first_row_ + query / group_]; }
  OQ_DEVICE int head_of(int query) const { return kv_head_ * group_ + query % group_; }

  /// A query as hi + lo, behind a power of two; zeros where there is none. A warp.
  OQ_DEVICE void load_query(int local) {
    const int q = first_query_ + local;
    uint16_t* hi = s_.queries + local * row_stride();
    uint16_t* lo = hi + kFlashQueries * row_stride();
    if (q >= queries_) {
      for (int d = lane_id(); d < depth_; d += 32) hi[d] = lo[d] = 0;
      return;
    }
    const int row = row_of(q), head = head_of(q), position = first_position_ + q / group_;
    float peak = 0, up, down;
    bring_query(a_, row, head, position, depth_,
                [&](int, float x) { peak = fmaxf(peak, fabsf(x)); });
    fill_range(warp_reduce<Max>(peak), up, down);
    bring_query(a_, row, head, position, depth_, [&](int d, float x) {
      hi[d] = float_to_half(x * up);
      lo[d] = float_to_half(x * up - half_to_float(hi[d]));
    });
    if (lane_id() == 0) s_.down[local] = down;
  }

  OQ_DEVICE void load_keys(int tile) {
    for (int i = thread_id(); i < kKvTile * depth_ / 8; i += kFlashThreads) {
      const int p = i % kKvTile, c = i / kKvTile, position = tile * kKvTile + p;
      uint16_t halves[kPlanes<kType>][8] = {};
      if (c < cache_.chunks) {
        load_halves<kType>(cache_.key(position, c), cache_.grid(position, false), halves);
      }
      OQ_UNROLL
      for (int plane = 0; plane < kPlanes<kType>; ++plane) {
        Words4 words;
        OQ_UNROLL
        for (int w = 0; w < 4; ++w) {
          words.w[w] = two_halves(halves[plane][2 * w], halves[plane][2 * w + 1]);
        }
        *reinterpret_cast<Words4*>(s_.keys + (plane * kKvTile + p) * row_stride() + 8 * c) = words;
      }
    }
  }

  /// Two positions at a time, for a word has both. What nobody has appended yet is zeros: it meets
  /// probabilities of 0.
  OQ_DEVICE void load_values(int tile) {
    for (int i = thread_id(); i < kKvTile / 2 * depth_ / 8; i += kFlashThreads) {
      const int pair = i % (kKvTile / 2), c = i / (kKvTile / 2);
      uint16_t halves[2][kPlanes<kType>][8] = {};
      OQ_UNROLL
      for (int p = 0; p < 2; ++p) {
        const int position = tile * kKvTile + 2 * pair + p;
        if (c >= cache_.chunks || position > last_seen_) continue;
        load_halves<kType>(cache_.value(position, c), cache_.grid(position, true), halves[p]);
      }
      OQ_UNROLL
      for (int plane = 0; plane < kPlanes<kType>; ++plane) {
        OQ_UNROLL
        for (int d = 0; d < 8; ++d) {
          uint16_t* to = s_.values + (plane * depth_ + 8 * c + d) * kValueStride + 2 * pair;
          *reinterpret_cast<uint32_t*>(to) = two_halves(halves[0][plane][d], halves[1][plane][d]);
        }
      }
    }
  }

  /// b: k 16 deep from `from`, of the lane's row of n.
  OQ_DEVICE static void load_b(const uint16_t* from, uint32_t b[2]) {
    b[0] = word_at(from + 2 * (lane_id() % 4));
    b[1] = word_at(from + 2 * (lane_id() % 4) + 8);
  }

  OQ_DEVICE void load_a(const uint16_t* rows, int k, uint32_t a[4]) const {
    OQ_UNROLL
    for (int i = 0; i < 4; ++i) {
      a[i] =
          word_at(rows + local_query(i % 2) * row_stride() + k + 2 * (lane_id() % 4) + i / 2 * 8);
    }
  }

  /// Of the warp's queries with the tile's positions.
  OQ_DEVICE void score(float scores[kKvTile / 8][4]) const {
    for (int k = 0; k < depth_; k += 16) {
      uint32_t hi[4], lo[4];
      load_a(s_.queries, k, hi);
      load_a(s_.queries + kFlashQueries * row_stride(), k, lo);
      OQ_UNROLL
      for (int n = 0; n < kKvTile / 8; ++n) {
        const uint16_t* key = s_.keys + (8 * n + lane_id() / 4) * row_stride() + k;
        uint32_t b[2];
        load_b(key, b);
        mma_f16(scores[n], hi, b);
        mma_f16(scores[n], lo, b);
        if (kPlanes<kType> == 1) continue;
        load_b(key + kKvTile * row_stride(), b);
        mma_f16(scores[n], hi, b);
      }
    }
  }

  /// Scores become probabilities beside the largest so far, and what was summed before shrinks.
  OQ_DEVICE void normalize(int tile, float scores[kKvTile / 8][4]) {
    OQ_UNROLL
    for (int r = 0; r < 2; ++r) {
      const int q = query(r), position = first_position_ + q / group_;
      const int first = q < queries_ ? seen_from(a_, position) : position + 1;
      const float down = q < queries_ ? s_.down[local_query(r)] : 0.0f;
      const float* alibi =
          a_.alibi == nullptr ? nullptr : a_.alibi + int64_t(head_of(q)) * a_.alibi_stride;
      float top = tops_[r];
      OQ_UNROLL
      for (int i = 0; i < kKvTile / 4; ++i) {
        const int p = position_of(tile, i);
        float& score = scores[i / 2][2 * r + i % 2];
        score *= down;
        if (p < first || p > position) continue;
        if (alibi != nullptr) score += alibi[p];
        top = fmaxf(top, score);
      }
      top = fmaxf(top, shuffle_xor(top, 1));
      top = fmaxf(top, shuffle_xor(top, 2));
      // A NaN among scores is in no maximum, but in its own exponential. Nothing seen yet: 0.
      const float base = top == -INFINITY ? 0.0f : top;
      const float shrink = expf(tops_[r] - base), lowered = base - kRaise;
      float sum = 0;
      OQ_UNROLL
      for (int i = 0; i < kKvTile / 4; ++i) {
        const int p = position_of(tile, i);
        float& score = scores[i / 2][2 * r + i % 2];
        score = p < first || p > position ? 0.0f : expf(score - lowered);
        sum += score;
      }
      tops_[r] = top;
      sums_[r] = sums_[r] * shrink + sum;
      OQ_UNROLL
      for (int n = 0; n < kDimTiles; ++n) {
        out_[n][2 * r] *= shrink;
        out_[n][2 * r + 1] *= shrink;
      }
    }
  }
  /// Of the lane's i-th score of a row.
  OQ_DEVICE static int position_of(int tile, int i) {
    return tile * kKvTile + i / 2 * 8 + 2 * (lane_id() % 4) + i % 2;
  }

  /// out += probabilities x values: the scores' registers are the A fragments as they are.
  OQ_DEVICE void weigh(const float p[kKvTile / 8][4]) {
    OQ_UNROLL
    for (int k = 0; k < kKvTile / 16; ++k) {
      uint32_t hi[4], lo[4];
      OQ_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float x = p[2 * k + i / 2][i % 2 * 2], y = p[2 * k + i / 2][i % 2 * 2 + 1];
        const uint16_t high_x = float_to_half(x), high_y = float_to_half(y);
        hi[i] = two_halves(high_x, high_y);
        lo[i] = two_halves(float_to_half(x - half_to_float(high_x)),
                           float_to_half(y - half_to_float(high_y)));
      }
      OQ_UNROLL
      for (int n = 0; n < kDimTiles; ++n) {
        if (8 * n >= depth_) continue;
        const uint16_t* value = s_.values + (8 * n + lane_id() / 4) * kValueStride + 16 * k;
        uint32_t b[2];
        load_b(value, b);
        mma_f16(out_[n], hi, b);
        mma_f16(out_[n], lo, b);
        if (kPlanes<kType> == 1) continue;
        load_b(value + depth_ * kValueStride, b);
        mma_f16(out_[n], hi, b);
      }
    }
  }

  OQ_DEVICE void leave() const {
    OQ_UNROLL
    for (int r = 0; r < 2; ++r) {
      float sum = sums_[r];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      if (query(r) >= queries_) continue;
      float* to =
          a_.out + int64_t(row_of(query(r))) * a_.out_stride + head_of(query(r)) * a_.kv.dim;
      OQ_UNROLL
      for (int n = 0; n < kDimTiles; ++n) {
        OQ_UNROLL
        for (int i = 0; i < 2; ++i) {
          const int d = 8 * n + 2 * (lane_id() % 4) + i;
          if (d < a_.kv.dim) to[d] = out_[n][2 * r + i] / sum;
        }
      }
    }
  }

  const AttentionArgs& a_;
  HeadCache<kType> cache_;
  FlashShared s_;
  int depth_;  ///< dimensions, a multiple of 16
  int kv_head_, group_, first_row_, first_query_, queries_, first_position_, last_seen_;
  float tops_[2] = {-INFINITY, -INFINITY}, sums_[2] = {};
  float out_[kDimTiles][4] = {};
};

/// A block for each row and KV head: a warp its key, a warp its value.
template <KvType kType>
__global__ void append_kernel(AttentionArgs a) {
  const int row = block_x();
  const HeadCache<kType> cache(a.kv, a.sequences[row], block_y());
  append(a, cache, row, block_y(), a.positions[row], warp_id() == 1);
}

constexpr int depth_of(const KvArgs& kv) { return (kv.dim + 15) / 16 * 16; }

template <KvType kType>
__global__ void __launch_bounds__(kFlashThreads, 3) flash_kernel(AttentionArgs a) {
  const int blocks = grid_x() / a.runs, run = block_x() / blocks;  // grid.y has room for heads only
  const int first_query = (blocks - 1 - block_x() % blocks) * kFlashQueries;
  FlashBlock<kType> block(a, depth_of(a.kv), run, block_y(), first_query);
  if (!block.is_empty()) block.run();
}

}  // namespace

template <KvType kType>
void start_flash(Stream& stream, const AttentionArgs& a) {
  launch(stream, "append", append_kernel<kType>, {.x = a.rows, .y = a.kv.kv_heads, .threads = 64},
         a);
  const int queries = a.longest_run * (a.heads / a.kv.kv_heads);
  launch(stream, "flash_attention", flash_kernel<kType>,
         {.x = (queries + kFlashQueries - 1) / kFlashQueries * a.runs,
          .y = a.kv.kv_heads,
          .threads = kFlashThreads,
          .shared = FlashShared::bytes(depth_of(a.kv), kPlanes<kType>)},
         a);
}
bool can_flash(const Stream& stream, const KvArgs& kv) {
  const int planes = kv.type == KvType::f16 ? 1 : 2;
  return kv.dim <= kFlashDims && FlashShared::bytes(depth_of(kv), planes) <= stream.block_shared();
}

template void start_flash<KvType::f32>(Stream&, const AttentionArgs&);
template void start_flash<KvType::f16>(Stream&, const AttentionArgs&);
template void start_flash<KvType::codes8>(Stream&, const AttentionArgs&);
template void start_flash<KvType::codes4>(Stream&, const AttentionArgs&);

}  // namespace oq::cuda
