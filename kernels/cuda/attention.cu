/// RoPE, append to the KV cache, attention split over positions, and the merge, in one kernel.
///
/// Regime: decode, runs of up to 8 rows; flash.cu has longer ones. Bound: memory, the cache read
/// once
///   for every 4 queries of a KV head that share it (the next 4 find it in the caches of the SM).
/// Layout: keys in tiles of 32 positions, [tile][dim / 8][32][8], so that a lane is a position and
///   16 bytes are 8 of its f16 dimensions: no shuffles in a score. Values row by row.
/// Work split: a block takes one run of rows (of one sequence), one KV head, and a stretch of 128
///   positions; a warp 32 of them. A row's key lies in one stretch, and the block of that stretch
///   is the only one to read it in this launch: so the block appends it itself, and no other launch
///   is needed. The block that arrives last merges all stretches, in their order.
/// Sums: fp32; positions of a warp, then warps, then stretches, each by the rule of online softmax.
/// Measured: not measured.

#include "kernels/cuda/kv_rows.h"

namespace oq::cuda {
namespace {

constexpr int kAttentionWarps = kKvStretch / kKvTile;
constexpr int kAttentionThreads = 32 * kAttentionWarps;
constexpr int kQueries = kAttentionWarps;  ///< at once: a warp prepares each

/// What a block works on.
struct Work {
  int stretch, run, kv_head;
  int first_row, rows;           ///< in `order`
  int sequence, first_position;  ///< of the first row; the others follow it
  int first_seen, last_seen;     ///< positions that any of the rows sees
  int group;                     ///< query heads of the KV head

  OQ_DEVICE Work(const AttentionArgs& a) {
    stretch = block_x();
    run = block_y() / a.kv.kv_heads;
    kv_head = block_y() % a.kv.kv_heads;
    first_row = a.run_first[run];
    rows = a.run_first[run + 1] - first_row;
    sequence = a.sequences[a.order[first_row]];
    first_position = a.positions[a.order[first_row]];
    first_seen = seen_from(a, first_position);
    last_seen = first_position + rows - 1;
    group = a.heads / a.kv.kv_heads;
  }

  OQ_DEVICE int first_stretch() const { return first_seen / kKvStretch; }
  OQ_DEVICE int last_stretch() const { return last_seen / kKvStretch; }
};

template <KvType kType>
OQ_DEVICE void append_rows(const AttentionArgs& a, const Work& work,
                           const HeadCache<kType>& cache) {
  for (int i = warp_id(); i < 2 * work.rows; i += kAttentionWarps) {
    const int position = work.first_position + i / 2;
    if (position / kKvStretch != work.stretch) continue;
    append(a, cache, a.order[work.first_row + i / 2], work.kv_head, position, i % 2 == 1);
  }
}

/// Shared memory: queries [kQueries][padded_dim], probabilities [warp][kQueries][32], tops and
/// sums [warp][kQueries], weighted values [warp][sub][kQueries][padded_dim], a flag.
struct AttentionShared {
  float *queries, *probabilities, *tops, *sums, *outs;
  uint32_t* flag;

  static constexpr size_t bytes(int padded_dim) {
    return (size_t(kQueries) * size_t(padded_dim) + size_t(kAttentionWarps) * kQueries * 34 +
            size_t(kAttentionWarps) * kQueries * 256 + 1) *
           sizeof(float);
  }
  OQ_DEVICE explicit AttentionShared(int padded_dim) {
    queries = reinterpret_cast<float*>(shared_memory());
    probabilities = queries + kQueries * padded_dim;
    tops = probabilities + kAttentionWarps * kQueries * kKvTile;
    sums = tops + kAttentionWarps * kQueries;
    outs = sums + kAttentionWarps * kQueries;
    flag = reinterpret_cast<uint32_t*>(outs + kAttentionWarps * kQueries * 256);
  }
};

/// One pass: up to kQueries queries of the run against the stretch.
template <KvType kType>
class Pass {
 public:
  OQ_DEVICE Pass(const AttentionArgs& a, const Work& work, const HeadCache<kType>& cache,
                 const AttentionShared& s, int first_query)
      : a_(a), work_(work), cache_(cache), s_(s), first_(first_query) {}

  OQ_DEVICE void run() {
    load_query();
    sync_block();
    const int tile = work_.stretch * kAttentionWarps + warp_id();
    if (tile * kKvTile <= work_.last_seen && (tile + 1) * kKvTile > work_.first_seen) {
      score(tile);
      sync_warp();
      weigh(tile);
    } else {
      see_nothing();
    }
    sync_block();
    leave();
    sync_block();
  }

 private:
  OQ_DEVICE int queries() const { return work_.rows * work_.group; }
  OQ_DEVICE bool is_there(int i) const { return first_ + i < queries(); }
  OQ_DEVICE int row_of(int i) const { return (first_ + i) / work_.group; }
  OQ_DEVICE int head_of(int i) const {
    return work_.kv_head * work_.group + (first_ + i) % work_.group;
  }
  OQ_DEVICE int position_of(int i) const { return work_.first_position + row_of(i); }
  OQ_DEVICE int chunks() const { return a_.kv.padded_dim / 8; }
  OQ_DEVICE int subs() const { return 32 / chunks(); }

  /// Warp w brings query w.
  OQ_DEVICE void load_query() {
    const int i = warp_id(), width = a_.kv.padded_dim;
    float* to = s_.queries + i * width;
    if (!is_there(i)) {
      for (int d = lane_id(); d < width; d += 32) to[d] = 0.0f;
      return;
    }
    bring_query(a_, a_.order[work_.first_row + row_of(i)], head_of(i), position_of(i), width,
                [&](int d, float x) { to[d] = x; });
  }

  /// A lane is a position: its scores with all queries, and their exponentials.
  OQ_DEVICE void score(int tile) {
    const int position = tile * kKvTile + lane_id();
    const CellGrid grid = cache_.grid(position, false);
    float scores[kQueries] = {};
    for (int c = 0; c < chunks(); ++c) {
      float key[8];
      Cells<kType>::load(cache_.key(position, c), grid, key);
      OQ_UNROLL
      for (int i = 0; i < kQueries; ++i) {
        const float* q = s_.queries + i * a_.kv.padded_dim + 8 * c;
        OQ_UNROLL
        for (int d = 0; d < 8; ++d) scores[i] += q[d] * key[d];
      }
    }
    OQ_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      const bool visible =
          is_there(i) && position <= position_of(i) && position >= seen_from(a_, position_of(i));
      if (visible && a_.alibi != nullptr) {
        scores[i] += a_.alibi[int64_t(head_of(i)) * a_.alibi_stride + position];
      }
      const float top = warp_reduce<Max>(visible ? scores[i] : -INFINITY);
      // A NaN among scores is in no maximum, but in its own exponential.
      const float p = visible ? expf(scores[i] - top) : 0.0f;
      const float sum = warp_reduce<Sum>(p);
      s_.probabilities[(warp_id() * kQueries + i) * kKvTile + lane_id()] = p;
      if (lane_id() == 0) {
        s_.tops[warp_id() * kQueries + i] = top;
        s_.sums[warp_id() * kQueries + i] = sum;
      }
    }
  }

  OQ_DEVICE float* out_of(int warp, int sub, int i) const {
    return s_.outs + ((warp * subs() + sub) * kQueries + i) * a_.kv.padded_dim;
  }

  /// A lane has 8 dimensions of every subs()-th position of the tile.
  OQ_DEVICE void weigh(int tile) {
    const int sub = lane_id() / chunks(), chunk = lane_id() % chunks();
    if (sub >= subs()) return;
    float out[kQueries][8] = {};
    for (int p = sub; p < kKvTile && tile * kKvTile + p <= work_.last_seen; p += subs()) {
      const int position = tile * kKvTile + p;
      float value[8];
      Cells<kType>::load(cache_.value(position, chunk), cache_.grid(position, true), value);
      OQ_UNROLL
      for (int i = 0; i < kQueries; ++i) {
        const float weight = s_.probabilities[(warp_id() * kQueries + i) * kKvTile + p];
        OQ_UNROLL
        for (int d = 0; d < 8; ++d) out[i][d] += weight * value[d];
      }
    }
    OQ_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      OQ_UNROLL
      for (int d = 0; d < 8; ++d) out_of(warp_id(), sub, i)[8 * chunk + d] = out[i][d];
    }
  }

  OQ_DEVICE void see_nothing() {
    if (lane_id() >= kQueries) return;
    s_.tops[warp_id() * kQueries + lane_id()] = -INFINITY;
    s_.sums[warp_id() * kQueries + lane_id()] = 0.0f;
  }

  /// The warps' parts become the block's: weighted values, top and sum, in global memory.
  OQ_DEVICE void leave() {
    const int dim = a_.kv.padded_dim;
    for (int j = thread_id(); j < kQueries * dim; j += kAttentionThreads) {
      const int i = j / dim, d = j % dim;
      if (!is_there(i)) continue;
      float top = -INFINITY, sum = 0, out = 0;
      for (int w = 0; w < kAttentionWarps; ++w) top = fmaxf(top, s_.tops[w * kQueries + i]);
      for (int w = 0; w < kAttentionWarps; ++w) {
        if (s_.sums[w * kQueries + i] == 0.0f) continue;  // saw nothing
        const float factor = expf(s_.tops[w * kQueries + i] - top);
        sum += factor * s_.sums[w * kQueries + i];
        for (int sub = 0; sub < subs(); ++sub) out += factor * out_of(w, sub, i)[d];
      }
      const int row = a_.order[work_.first_row + row_of(i)];
      float* part =
          a_.parts +
          ((int64_t(row) * a_.heads + head_of(i)) * a_.stretches + work_.stretch) * (dim + 2);
      part[2 + d] = out;
      if (d == 0) part[0] = top;
      if (d == 0) part[1] = sum;
    }
  }

  const AttentionArgs& a_;
  const Work& work_;
  const HeadCache<kType>& cache_;
  const AttentionShared& s_;
  int first_;
};

/// True in all threads of the block that is the last of its run and KV head to come here.
OQ_DEVICE bool arrived_last(const AttentionArgs& a, const Work& work, uint32_t* flag) {
  fence_device();
  sync_block();
  if (thread_id() == 0) {
    const auto all = uint32_t(work.last_stretch() - work.first_stretch() + 1);
    uint32_t* arrived = a.arrived + block_y();
    const bool last = atomic_add(arrived, 1) + 1 == all;
    if (last) *arrived = 0;  // for the next launch
    *flag = last ? 1 : 0;
  }
  sync_block();
  fence_device();
  return *flag != 0;
}

/// out = all stretches' parts, by the rule of online softmax.
OQ_DEVICE void merge(const AttentionArgs& a, const Work& work) {
  const int dim = a.kv.dim, size = a.kv.padded_dim + 2;
  for (int j = thread_id(); j < work.rows * work.group * dim; j += kAttentionThreads) {
    const int d = j % dim, query = j / dim;
    const int row = a.order[work.first_row + query / work.group];
    const int head = work.kv_head * work.group + query % work.group;
    const float* parts = a.parts + (int64_t(row) * a.heads + head) * a.stretches * size;
    float top = -INFINITY, sum = 0, out = 0;
    for (int s = work.first_stretch(); s <= work.last_stretch(); ++s) {
      top = fmaxf(top, load_fresh(parts + s * size));
    }
    for (int s = work.first_stretch(); s <= work.last_stretch(); ++s) {
      const float part_sum = load_fresh(parts + s * size + 1);
      if (part_sum == 0.0f) continue;
      const float factor = expf(load_fresh(parts + s * size) - top);
      sum += factor * part_sum;
      out += factor * load_fresh(parts + s * size + 2 + d);
    }
    a.out[int64_t(row) * a.out_stride + head * dim + d] = out / sum;
  }
}

/// Blocks on an SM: with four, the f32 cache's would spill a register.
template <KvType kType>
[[maybe_unused]] constexpr int kAttentionBlocks = kType == KvType::f32 ? 3 : 4;

template <KvType kType>
__global__ void __launch_bounds__(kAttentionThreads, kAttentionBlocks<kType>)
    attention_kernel(AttentionArgs a) {
  const Work work(a);
  if (work.stretch < work.first_stretch() || work.stretch > work.last_stretch()) return;
  const HeadCache<kType> cache(a.kv, work.sequence, work.kv_head);
  const AttentionShared shared(a.kv.padded_dim);
  append_rows(a, work, cache);
  sync_block();
  for (int query = 0; query < work.rows * work.group; query += kQueries) {
    Pass<kType>(a, work, cache, shared, query).run();
  }
  if (arrived_last(a, work, shared.flag)) merge(a, work);
}

}  // namespace

template <KvType kType>
void start_attention(Stream& stream, const AttentionArgs& args) {
  launch(stream, "attention", attention_kernel<kType>,
         {.x = args.stretches,
          .y = args.runs * args.kv.kv_heads,
          .threads = kAttentionThreads,
          .shared = AttentionShared::bytes(args.kv.padded_dim)},
         args);
}
template void start_attention<KvType::f32>(Stream&, const AttentionArgs&);
template void start_attention<KvType::f16>(Stream&, const AttentionArgs&);
template void start_attention<KvType::codes8>(Stream&, const AttentionArgs&);
template void start_attention<KvType::codes4>(Stream&, const AttentionArgs&);

}  // namespace oq::cuda
