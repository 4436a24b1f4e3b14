/// Rows of x behind their norm put onto the scheme's grids: packed for an engine (integer.h), or as
/// floats for dense weights.
///
/// Regime: once before linears that share an input; a few kilobytes a row, so bound by the launch
///   and the latency of three passes over a row that the second-level cache holds. Up to 8 tokens a
///   linear's blocks may do the same for themselves (integer_linear.h).
/// Work split: a block for each row and form. Per tensor, a first launch measures all rows, and
/// each
///   block of the second joins those of its run.
/// Measured: not measured.

#include "kernels/cuda/integer_linear.h"

namespace oq::cuda {
namespace {

/// Which row a block has.
struct Place {
  int form, expert, i;
  SourceRow row;
};

/// The linear whose live columns a form has.
OQ_DEVICE const PackedMatrix& weights_of(const IntegerArgs& a, int form) {
  const PackedArgs& call = a.linears;
  const int l = a.rows.form_per_linear ? form % call.count : 0;
  const int expert = a.rows.form_per_linear ? form / call.count : form;
  return call.experts != nullptr ? call.experts[expert * call.count + l].matrix
                                 : call.linears[l].matrix;
}

OQ_DEVICE Place place_of(const IntegerArgs& a) {
  const int form = block_y(), i = block_x();
  const int expert = a.rows.form_per_linear ? form / a.linears.count : form;
  const PackedMatrix& w = weights_of(a, form);
  return {form, expert, i, {row_of(a.linears.in, expert, i), w.cols, w.weak_mask}};
}
OQ_DEVICE Place place_of(const ValuesArgs& a) {
  const int expert = block_y(), i = block_x();
  return {expert, expert, i, {row_of(a.in, expert, i), a.cols, nullptr}};
}

OQ_DEVICE const InputArgs& input_of(const IntegerArgs& a) { return a.linears.in; }
OQ_DEVICE const InputArgs& input_of(const ValuesArgs& a) { return a.in; }
/// The statistics of a form's rows.
OQ_DEVICE RowStats* stats_of(const IntegerArgs& a, int form) {
  return a.rows.stats + int64_t(form) * a.rows.room;
}
OQ_DEVICE RowStats* stats_of(const ValuesArgs& a, int form) {
  return a.stats + int64_t(form) * a.room;
}

template <class Args>
__global__ void __launch_bounds__(kThreads) measure_kernel(Args a) {
  const Place p = place_of(a);
  if (p.i >= row_count(input_of(a), p.expert)) return;
  const RowStats s = measure(input_of(a).norm, p.row, reinterpret_cast<float*>(shared_memory()));
  if (thread_id() == 0) stats_of(a, p.form)[p.i] = s;
}

/// What the row's grid is made of: its own range, or, once all rows are measured, its run's.
template <class Args>
OQ_DEVICE RowStats stats_for(const Args& a, const Place& p, float* scratch) {
  const InputArgs& in = input_of(a);
  return in.per_tensor ? joined(in, p.expert, stats_of(a, p.form), p.i, scratch)
                       : measure(in.norm, p.row, scratch);
}

__global__ void __launch_bounds__(kThreads) pack_kernel(IntegerArgs a) {
  const Place p = place_of(a);
  const InputArgs& in = a.linears.in;
  if (p.i >= row_count(in, p.expert)) return;
  const RowStats s = stats_for(a, p, reinterpret_cast<float*>(shared_memory()));
  pack_row(a.engine, in, s, p.row, weights_of(a, p.form), a.rows, p.form, p.i);
}

__global__ void __launch_bounds__(kThreads) values_kernel(ValuesArgs a) {
  const Place p = place_of(a);
  if (p.i >= row_count(a.in, p.expert)) return;
  const RowStats s = stats_for(a, p, reinterpret_cast<float*>(shared_memory()));
  const Grid8 grid(s, a.in.bits);
  float* to = a.values + (int64_t(p.form) * a.room + p.i) * a.stride;
  for (int k = thread_id(); k < a.cols; k += kThreads) {
    to[k] = grid.value(normed(a.in.norm, s, p.row.x, k));
  }
}

Grid grid_of(int rows, int forms) {
  return {.x = rows, .y = forms, .threads = kThreads, .shared = kWarps * sizeof(float)};
}

}  // namespace

void start_quantize(Stream& stream, const IntegerArgs& a) {
  const Grid grid = grid_of(a.linears.in.tokens, forms_of(a.linears));
  if (a.linears.in.per_tensor) {
    launch(stream, "measure_rows", measure_kernel<IntegerArgs>, grid, a);
  }
  launch(stream, "quantize_rows", pack_kernel, grid, a);
}

bool can_fuse(const Stream& stream, const PackedArgs& args) {
  return args.in.tokens <= kMaxTokens && fused_shared<kMaxTokens>(args) <= stream.block_shared();
}

void start_values(Stream& stream, const ValuesArgs& a) {
  const Grid grid = grid_of(a.in.tokens, a.experts);
  if (a.in.per_tensor) launch(stream, "measure_rows", measure_kernel<ValuesArgs>, grid, a);
  launch(stream, "quantize_values", values_kernel, grid, a);
}

}  // namespace oq::cuda
