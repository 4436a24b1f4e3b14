/// RoPE, append to the KV cache, attention split over positions, and the merge, in one kernel.
///
/// Regime: decode, up to 8 rows; longer prompts work, slowly. Bound: memory, the cache read once
///   for every 4 queries of a KV head that share it (the next 4 find it in the caches of the SM).
/// Layout: keys in tiles of 32 positions, [tile][dim / 8][32][8], so that a lane is a position and
///   16 bytes are 8 of its f16 dimensions: no shuffles in a score. Values row by row.
/// Work split: a block takes one run of rows (of one sequence), one KV head, and a stretch of 128
///   positions; a warp 32 of them. A row's key lies in one stretch, and the block of that stretch
///   is the only one to read it in this launch: so the block appends it itself, and no other launch
///   is needed. The block that arrives last merges all stretches, in their order.
/// Sums: fp32; positions of a warp, then warps, then stretches, each by the rule of online softmax.
/// Measured: not measured.

#include "kernels/cuda/block.h"
#include "kernels/cuda/kv_cells.h"

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

  OQ_DEVICE static int seen_from(const AttentionArgs& a, int position) {
    return a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
  }
  OQ_DEVICE int first_stretch() const { return first_seen / kKvStretch; }
  OQ_DEVICE int last_stretch() const { return last_seen / kKvStretch; }
};

/// Dimension d of a head of q or k at `position`, rotated.
OQ_DEVICE float rotated(const AttentionArgs& a, const float* head, int position, int d) {
  if (a.rotations == nullptr || d >= a.rope_dim) return head[d];
  const int half = a.rope_dim / 2;
  const float* turn = a.rotations + (int64_t(position) * half + d % half) * 2;
  const float x = head[d % half], y = head[d % half + half];
  return d < half ? x * turn[0] - y * turn[1] : y * turn[0] + x * turn[1];
}

/// The smallest and largest of term(d) for d in [0, n), NaNs where one is not finite; a warp.
template <class Term>
OQ_DEVICE void warp_range(int n, Term term, float& low, float& high) {
  low = INFINITY;
  high = -INFINITY;
  float poison = 0;
  for (int d = lane_id(); d < n; d += 32) {
    const float x = term(d);
    low = fminf(low, x);
    high = fmaxf(high, x);
    poison += x - x;
  }
  poison = warp_reduce<Sum>(poison);
  low = warp_reduce<Min>(low) + poison;
  high = warp_reduce<Max>(high) + poison;
}

/// KvGrid::of, as stored.
template <class Term>
OQ_DEVICE void fit_cells(int n, int bits, Term term, uint16_t stored[2], CellGrid& grid) {
  float low = 0, high = 0;
  warp_range(n, term, low, high);
  stored[1] = float_to_half(low);
  grid.low = half_to_float(stored[1]);
  const float scale = (high - grid.low) / float((1 << bits) - 1);
  stored[0] = float_to_half(scale > 0x1p-24f ? scale : 0x1p-24f + (high - high));
  grid.scale = half_to_float(stored[0]);
}

/// Appends one row's key, or its value, of the block's KV head; a warp.
template <class Cells>
OQ_DEVICE void append(const AttentionArgs& a, const Work& work, const HeadCache<Cells>& cache,
                      int row, int position, bool value) {
  const int dim = a.kv.dim, width = a.heads * dim;
  const float* head = a.qkv + int64_t(row) * a.qkv_stride + width +
                      (value ? a.kv.kv_heads * dim : 0) + work.kv_head * dim;
  const auto term = [&](int d) { return value ? head[d] : rotated(a, head, position, d); };
  CellGrid grid{1.0f, 0.0f};
  if (a.kv.type == KvType::codes) {
    uint16_t stored[2];
    fit_cells(dim, a.kv.bits, term, stored, grid);
    if (lane_id() < 2) {
      cache.grids[int64_t(position) * 4 + (value ? 2 : 0) + lane_id()] = stored[lane_id()];
    }
  }
  for (int d = lane_id(); d < a.kv.padded_dim; d += 32) {
    const auto cell = Cells::make(d < dim ? term(d) : 0.0f, grid, a.kv.bits);
    if (value) {
      cache.values[cache.value_at(position, d)] = cell;
    } else {
      cache.keys[cache.key_at(position, d)] = cell;
    }
  }
}

template <class Cells>
OQ_DEVICE void append_rows(const AttentionArgs& a, const Work& work,
                           const HeadCache<Cells>& cache) {
  for (int i = warp_id(); i < 2 * work.rows; i += kAttentionWarps) {
    const int position = work.first_position + i / 2;
    if (position / kKvStretch != work.stretch) continue;
    append(a, work, cache, a.order[work.first_row + i / 2], position, i % 2 == 1);
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
template <class Cells>
class Pass {
 public:
  OQ_DEVICE Pass(const AttentionArgs& a, const Work& work, const HeadCache<Cells>& cache,
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

  /// Warp w brings query w, rotated, quantized and divided by sqrt(dim).
  OQ_DEVICE void load_query() {
    const int i = warp_id(), dim = a_.kv.dim;
    float* to = s_.queries + i * a_.kv.padded_dim;
    if (!is_there(i)) {
      for (int d = lane_id(); d < a_.kv.padded_dim; d += 32) to[d] = 0.0f;
      return;
    }
    const float* head =
        a_.qkv + int64_t(a_.order[work_.first_row + row_of(i)]) * a_.qkv_stride + head_of(i) * dim;
    const auto term = [&](int d) { return rotated(a_, head, position_of(i), d); };
    const float top = float((1 << (a_.query_bits < 16 ? a_.query_bits : 1)) - 1);
    float scale = 1.0f, zero = 0.0f;
    if (a_.query_bits < 16) {
      float low = 0, high = 0;
      warp_range(dim, term, low, high);
      scale = fmaxf((high - low) / top, 1e-5f) + (high - high);
      zero = rintf(-low / scale);
    }
    const float shrink = 1.0f / sqrtf(float(dim));
    for (int d = lane_id(); d < a_.kv.padded_dim; d += 32) {
      float x = d < dim ? term(d) : 0.0f;
      if (a_.query_bits < 16 && d < dim) {
        x = scale * (fminf(fmaxf(rintf(x / scale) + zero, 0.0f), top) - zero);
      }
      to[d] = x * shrink;
    }
  }

  /// A lane is a position: its scores with all queries, and their exponentials.
  OQ_DEVICE void score(int tile) {
    const int position = tile * kKvTile + lane_id();
    CellGrid grid{1.0f, 0.0f};
    if (a_.kv.type == KvType::codes) grid = cache_.grid(position, false);
    float scores[kQueries] = {};
    for (int c = 0; c < chunks(); ++c) {
      float key[8];
      Cells::load8(cache_.keys + cache_.key_at(position, 8 * c), grid, key);
      OQ_UNROLL
      for (int i = 0; i < kQueries; ++i) {
        const float* q = s_.queries + i * a_.kv.padded_dim + 8 * c;
        OQ_UNROLL
        for (int d = 0; d < 8; ++d) scores[i] += q[d] * key[d];
      }
    }
    OQ_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      const bool visible = is_there(i) && position <= position_of(i) &&
                           position >= Work::seen_from(a_, position_of(i));
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
      CellGrid grid{1.0f, 0.0f};
      if (a_.kv.type == KvType::codes) grid = cache_.grid(position, true);
      float value[8];
      Cells::load8(cache_.values + cache_.value_at(position, 8 * chunk), grid, value);
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
  const HeadCache<Cells>& cache_;
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

template <class Cells>
__global__ void __launch_bounds__(kAttentionThreads) attention_kernel(AttentionArgs a) {
  const Work work(a);
  if (work.stretch < work.first_stretch() || work.stretch > work.last_stretch()) return;
  const HeadCache<Cells> cache(a.kv, work.sequence, work.kv_head);
  const AttentionShared shared(a.kv.padded_dim);
  append_rows(a, work, cache);
  sync_block();
  for (int query = 0; query < work.rows * work.group; query += kQueries) {
    Pass<Cells>(a, work, cache, shared, query).run();
  }
  if (arrived_last(a, work, shared.flag)) merge(a, work);
}

template <class Cells>
void start(Stream& stream, const AttentionArgs& args) {
  launch(stream, "attention", attention_kernel<Cells>,
         {.x = args.stretches,
          .y = args.runs * args.kv.kv_heads,
          .threads = kAttentionThreads,
          .shared = AttentionShared::bytes(args.kv.padded_dim)},
         args);
}

}  // namespace

void start_attention_f32(Stream& stream, const AttentionArgs& a) { start<CellsF32>(stream, a); }
void start_attention_f16(Stream& stream, const AttentionArgs& a) { start<CellsF16>(stream, a); }
void start_attention_codes(Stream& stream, const AttentionArgs& a) { start<CellsCodes>(stream, a); }

}  // namespace oq::cuda
