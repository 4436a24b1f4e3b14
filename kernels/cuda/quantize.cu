/// Rows of x behind a norm, put onto the scheme's grids and packed for an engine (integer.h).
///
/// Regime: once before linears that share an input; a few kilobytes a row, so bound by the launch
///   and the latency of three passes over a row that the second-level cache holds.
/// Work split: a block for each row and form. A warp packs a strip of 128 columns at a time, a lane
///   four of them: into one word of bytes, or, by votes, into bits of planes. Sums of 32 columns
///   come with it. Per tensor, a first launch measures all rows, and each block of the second joins
///   those of its run.
/// Measured: not measured.
/// Lost, by count: every block of a linear quantizing for itself (as norms are done for a16): at w2
///   16 rows of weights are 4 bytes a column, what a token in fp32 is.

#include "kernels/cuda/block.h"
#include "kernels/cuda/integer.h"

namespace oq::cuda {
namespace {

/// What a block works on: row i of one form, and the linear that asks for it.
struct FormRow {
  int form, i;
  const PackedMatrix& w;
  const float* x;

  OQ_DEVICE bool is_weak(int k) const {
    return w.weak_mask != nullptr && (w.weak_mask[k / 32] >> (k % 32) & 1u) != 0;
  }
};

OQ_DEVICE int expert_of(const IntegerArgs& a, int form) {
  return a.rows.form_per_linear ? form / a.linears.count : form;
}
/// Rows of the form.
OQ_DEVICE int rows_of(const IntegerArgs& a, int form) {
  const InputArgs& in = a.linears.in;
  return in.count == nullptr ? in.tokens : in.count[expert_of(a, form)];
}
/// Where expert's row i is listed, by `rows`.
OQ_DEVICE int listed(const InputArgs& in, const int32_t* rows, int expert, int i) {
  if (rows == nullptr) return i;
  return rows[in.count == nullptr ? i : expert * kExpertRows + i];
}

OQ_DEVICE FormRow form_row(const IntegerArgs& a) {
  const PackedArgs& call = a.linears;
  const int form = block_y(), i = block_x(), expert = expert_of(a, form);
  const int l = a.rows.form_per_linear ? form % call.count : 0;
  const PackedMatrix& w = call.experts != nullptr ? call.experts[expert * call.count + l].matrix
                                                  : call.linears[l].matrix;
  const int64_t first = call.in.count == nullptr ? 0 : expert * call.in.expert_stride;
  const int64_t row = listed(call.in, call.in.rows, expert, i);
  return {form, i, w, call.in.x + first + row * call.in.stride};
}

OQ_DEVICE float normed(const NormArgs& norm, const RowStats& s, const float* x, int k) {
  const float v = x[k];
  if (norm.kind == NormKind::none) return v;
  const float y = (v - s.mean) * s.inv * norm.weight[k];
  return norm.kind == NormKind::layer ? y + norm.bias[k] : y;
}

OQ_DEVICE RowStats measure(const NormArgs& norm, const FormRow& row, float* scratch) {
  const int cols = row.w.cols;
  RowStats s{0.0f, 1.0f, INFINITY, -INFINITY};
  const auto over = [&](auto term) {
    float sum = 0;
    for (int k = thread_id(); k < cols; k += kThreads) sum += term(row.x[k]);
    return block_reduce<Sum>(sum, scratch);
  };
  if (norm.kind == NormKind::layer) s.mean = over([](float v) { return v; }) / float(cols);
  if (norm.kind != NormKind::none) {
    const float square = over([&](float v) { return (v - s.mean) * (v - s.mean); });
    s.inv = 1.0f / sqrtf(square / float(cols) + norm.eps);
  }
  float poison = 0;
  for (int k = thread_id(); k < cols; k += kThreads) {
    if (row.is_weak(k)) continue;
    const float v = normed(norm, s, row.x, k);
    s.low = fminf(s.low, v);
    s.high = fmaxf(s.high, v);
    poison += v * 0.0f;
  }
  poison = block_reduce<Sum>(poison, scratch);
  s.low = block_reduce<Min>(s.low, scratch) + poison;
  s.high = block_reduce<Max>(s.high, scratch) + poison;
  return s;
}

__global__ void measure_kernel(IntegerArgs a) {
  if (block_x() >= rows_of(a, block_y())) return;
  auto* scratch = reinterpret_cast<float*>(shared_memory());
  const FormRow row = form_row(a);
  const RowStats s = measure(a.linears.in.norm, row, scratch);
  if (thread_id() == 0) a.rows.stats[int64_t(row.form) * a.rows.room + row.i] = s;
}

/// The statistics of this row, with the range of all rows of its run: rows that stand side by side
/// and belong to one run of the batch.
OQ_DEVICE RowStats joined(const IntegerArgs& a, const FormRow& row, float* scratch) {
  const InputArgs& in = a.linears.in;
  const int rows = rows_of(a, row.form), expert = expert_of(a, row.form);
  const auto begins = [&](int i) {
    return in.runs[listed(in, in.run_rows, expert, i)] !=
           in.runs[listed(in, in.run_rows, expert, i - 1)];
  };
  float first = 0, last = float(rows);
  for (int i = thread_id(); i < rows; i += kThreads) {
    if (i == 0 || !begins(i)) continue;
    if (i <= row.i) first = fmaxf(first, float(i));
    if (i > row.i) last = fminf(last, float(i));
  }
  first = block_reduce<Max>(first, scratch);
  last = block_reduce<Min>(last, scratch);
  const RowStats* stats = a.rows.stats + int64_t(row.form) * a.rows.room;
  RowStats s = stats[row.i];
  float low = INFINITY, high = -INFINITY, poison = 0;
  for (int i = int(first) + thread_id(); i < int(last); i += kThreads) {
    low = fminf(low, stats[i].low);
    high = fmaxf(high, stats[i].high);
    if (stats[i].low != stats[i].low) poison = NAN;
  }
  poison = block_reduce<Sum>(poison, scratch);
  s.low = block_reduce<Min>(low, scratch) + poison;
  s.high = block_reduce<Max>(high, scratch) + poison;
  return s;
}

/// kernels/activation_grid.h
struct Grid8 {
  TokenGrid grid;
  float top;

  OQ_DEVICE Grid8(const RowStats& s, int bits) : top(float((1 << bits) - 1)) {
    const bool any = !(s.low > s.high);  // a live column; NaNs pass
    grid.scale = any ? (s.high - s.low) / top : 0.0f;
    if (!(grid.scale > 1e-5f) && grid.scale == grid.scale) grid.scale = 1e-5f;
    grid.zero = any ? rintf(-s.low / grid.scale) : 0.0f;
  }
  OQ_DEVICE uint32_t code(float x) const {
    return uint32_t(fminf(fmaxf(rintf(x / grid.scale) + grid.zero, 0.0f), top));
  }
};

/// Columns that byte b of word 8 q + r of a strip holds.
OQ_DEVICE int column_of(int lane, int b) {
  return 8 * (lane % 8) + 2 * (lane / 8) + b / 2 + 64 * (b % 2);
}

/// Sums of 32 columns, of all lanes: those of part b / 2 x 2 + r / 4.
OQ_DEVICE void store_sums(const IntegerArgs& a, int64_t at, const uint32_t codes[4],
                          const bool live[4]) {
  const int lane = lane_id();
  OQ_UNROLL
  for (int high = 0; high < 2; ++high) {  // columns from 64 on are bytes 1 and 3
    int32_t sum = 0;
    OQ_UNROLL
    for (int b = high; b < 4; b += 2) sum += int32_t(codes[b]) + (live[b] ? 1 << 16 : 0);
    OQ_UNROLL
    for (int mask : {1, 2, 8, 16}) sum += shuffle_xor(sum, mask);
    if (lane % 4 == 0 && lane < 8) a.rows.sums[at * 4 + 2 * high + lane / 4] = sum;
  }
}

/// Word 4 i + q of planes: bit 16 h + e is column 8 e + 2 q + h, which lane 8 q + e % 8 holds as
/// byte 2 h + e / 8.
OQ_DEVICE void store_planes(uint32_t* to, int planes, const uint32_t codes[4]) {
  const int lane = lane_id();
  for (int i = 0; i < planes; ++i) {
    uint32_t word = 0;
    OQ_UNROLL
    for (int b = 0; b < 4; ++b) {
      const uint32_t votes = ballot((codes[b] >> i & 1u) != 0);
      word |= (votes >> (8 * (lane % 4)) & 0xFFu) << (16 * (b / 2) + 8 * (b % 2));
    }
    if (lane < 4) to[4 * i + lane] = word;
  }
}

__global__ void quantize_kernel(IntegerArgs a) {
  if (block_x() >= rows_of(a, block_y())) return;
  auto* scratch = reinterpret_cast<float*>(shared_memory());
  const FormRow row = form_row(a);
  const InputArgs& in = a.linears.in;
  const QuantizedRows& to = a.rows;
  const RowStats s = in.per_tensor ? joined(a, row, scratch) : measure(in.norm, row, scratch);
  const Grid8 grid(s, in.bits);
  const int64_t place = int64_t(row.form) * to.room + row.i;
  if (thread_id() == 0) to.grids[place] = grid.grid;
  const int strips = row.w.strips(), planes = activation_planes(in.bits);
  const int words = code_words(a.engine, in.bits);
  for (int strip = warp_id(); strip < strips; strip += kWarps) {
    uint32_t codes[4];
    bool live[4];
    OQ_UNROLL
    for (int b = 0; b < 4; ++b) {
      const int k = strip * kStripCols + column_of(lane_id(), b);
      live[b] = k < row.w.cols && !row.is_weak(k);
      codes[b] = live[b] ? grid.code(normed(in.norm, s, row.x, k)) : 0;
    }
    const int64_t at = (int64_t(row.form) * strips + strip) * to.room + row.i;
    store_sums(a, at, codes, live);
    if (a.engine == Engine::planes) {
      store_planes(to.codes + at * words, planes, codes);
    } else {
      to.codes[at * words + lane_id()] = codes[0] | codes[1] << 8 | codes[2] << 16 | codes[3] << 24;
    }
  }
  for (int i = thread_id(); i < row.w.weak_columns; i += kThreads) {
    to.weak[place * to.weak_room + i] = normed(in.norm, s, row.x, int(row.w.weak_index[i]));
  }
}

}  // namespace

void start_quantize(Stream& stream, const IntegerArgs& a) {
  const Grid grid{.x = a.linears.in.tokens,
                  .y = forms_of(a.linears),
                  .threads = kThreads,
                  .shared = kWarps * sizeof(float)};
  if (a.linears.in.per_tensor) launch(stream, "measure_rows", measure_kernel, grid, a);
  launch(stream, "quantize_rows", quantize_kernel, grid, a);
}

}  // namespace oq::cuda
