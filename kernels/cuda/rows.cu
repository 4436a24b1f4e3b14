/// What happens to rows of activations between linears: table look-up, norms that are not fused,
/// the router's choice, and the sum over experts.
///
/// Regime: any number of rows; a few kilobytes each, so bound by the launch. Work split: a block
///   for each row. Measured: not measured.

#include "kernels/cuda/block.h"
#include "kernels/cuda/fields.h"
#include "kernels/cuda/kernels.h"

namespace oq::cuda {
namespace {

OQ_DEVICE float element(const DenseMatrix& w, int row, int col) {
  const int64_t at = int64_t(row) * w.stride + col;
  switch (w.type) {
    case Dense::f32:
      return static_cast<const float*>(w.data)[at];
    case Dense::f16:
      return half_to_float(static_cast<const uint16_t*>(w.data)[at]);
    case Dense::bf16:
      return bits_to_float(uint32_t(static_cast<const uint16_t*>(w.data)[at]) << 16);
  }
  return 0.0f;
}

/// The code at a row and column of a packed matrix, found the slow way.
OQ_DEVICE int code_at(const PackedMatrix& w, int row, int col) {
  const int bits = w.field_bits, unit_cols = kStripCols * (w.five_levels ? 3 : 1);
  const int in_strip = col % kStripCols, e = in_strip / 8, half = in_strip % 2;
  const int r = row % kTileRows, lane = r % 8 * 4 + in_strip % 8 / 2;
  const uint32_t* unit =
      w.codes + (int64_t(row / kTileRows) * w.units + col / unit_cols) * (2 * bits * 32);
  const auto word = [&](int i) { return unit[word_place(bits, lane, r / 8 * bits + i)]; };
  uint32_t value = 0;
  if (is_whole(bits, e)) {
    value = word(e % bits) >> (16 * half + field_bit(bits, e));
  } else {
    const int spare = spare_bits(bits), from = (e - whole_fields(bits)) * bits;
    for (int b = 0; b < bits; ++b) {
      const int at = from + b;
      value |= (word(at / spare) >> (16 * half + 16 - spare + at % spare) & 1u) << b;
    }
  }
  value &= (1u << bits) - 1;
  if (!w.five_levels) return int(value);
  const int third = col % unit_cols / kStripCols;
  return int(third == 0 ? value % 5 : third == 1 ? value / 5 % 5 : value / 25);
}

OQ_DEVICE float element(const PackedMatrix& w, int row, int col) {
  if (w.weak_mask != nullptr && (w.weak_mask[col / 32] >> (col % 32) & 1u) != 0) {
    int i = 0;
    while (int(w.weak_index[i]) != col) ++i;
    return weak_weight(
        w, (int64_t(row / kTileRows) * w.weak_columns + i) * kTileRows + row % kTileRows);
  }
  const int r = row % kTileRows;
  const int64_t at =
      (int64_t(row / kTileRows) * w.groups + col / w.group) * kTileRows + r % 8 * 2 + r / 8;
  const float zero = w.zero_mode == Zeros::constant ? float(w.zero)
                     : w.zero_mode == Zeros::u8 ? float(static_cast<const uint8_t*>(w.zeros)[at])
                                                : float(static_cast<const int16_t*>(w.zeros)[at]);
  return half_to_float(w.scales[at]) * (float(code_at(w, row, col)) - zero);
}

template <class Matrix>
__global__ void lookup_kernel(LookupArgs<Matrix> a) {
  const int row = a.index[block_x()];
  float* x = a.x + int64_t(block_x()) * a.stride;
  for (int k = thread_id(); k < a.table.cols; k += kThreads) {
    const float v = element(a.table, row, k);
    x[k] = a.add ? x[k] + v : v;
  }
}

__global__ void norm_kernel(NormRowsArgs a) {
  auto* scratch = reinterpret_cast<float*>(shared_memory());
  float* x = a.x + int64_t(block_x()) * a.stride;
  const auto over = [&](auto term) {
    float sum = 0;
    for (int k = thread_id(); k < a.cols; k += kThreads) sum += term(x[k]);
    return block_reduce<Sum>(sum, scratch);
  };
  const bool centred = a.norm.kind == NormKind::layer;
  const float mean = centred ? over([](float v) { return v; }) / float(a.cols) : 0.0f;
  const float square = over([&](float v) { return (v - mean) * (v - mean); });
  const float inv = 1.0f / sqrtf(square / float(a.cols) + a.norm.eps);
  for (int k = thread_id(); k < a.cols; k += kThreads) {
    x[k] = fmaf((x[k] - mean) * inv, a.norm.weight[k], centred ? a.norm.bias[k] : 0.0f);
  }
}

/// The expert of a token's next largest logit; the first of equal ones, NaNs last.
OQ_DEVICE int next_expert(const float* logits, const float* weight, int experts) {
  int best = -1;
  float top = -INFINITY;
  for (int e = 0; e < experts; ++e) {
    if (weight[e] >= 0.0f) continue;  // taken
    if (best < 0 || logits[e] > top) {
      best = e;
      top = logits[e] == logits[e] ? logits[e] : -INFINITY;
    }
  }
  return best;
}

/// A thread for each token chooses, then one for each expert lists who chose it, in their order.
__global__ void __launch_bounds__(kExpertRows) route_kernel(RouteArgs a) {
  for (int m = thread_id(); m < a.tokens; m += kExpertRows) {
    const float* logits = a.logits + int64_t(m) * a.stride;
    float* weight = a.weight + int64_t(m) * a.experts;
    for (int e = 0; e < a.experts; ++e) weight[e] = -1.0f;
    float top = 0, sum = 0;
    for (int i = 0; i < a.used; ++i) {
      const int e = next_expert(logits, weight, a.experts);
      const float logit = logits[e] == logits[e] ? logits[e] : -INFINITY;
      if (i == 0) top = logit;
      weight[e] = expf(logit - top);
      sum += weight[e];
    }
    for (int e = 0; e < a.experts; ++e) {
      if (!(weight[e] < 0.0f)) weight[e] /= sum;
    }
  }
  sync_block();
  for (int e = thread_id(); e < a.experts; e += kExpertRows) {
    int count = 0;
    for (int m = 0; m < a.tokens; ++m) {
      const bool chosen = !(a.weight[m * a.experts + e] < 0.0f);
      a.slot[m * a.experts + e] = chosen ? count : -1;
      if (chosen) a.rows[e * kExpertRows + count++] = m;
    }
    a.count[e] = count;
  }
}

__global__ void combine_kernel(CombineArgs a) {
  const int m = block_x();
  float* x = a.x + int64_t(m) * a.stride;
  for (int k = thread_id(); k < a.cols; k += kThreads) {
    float sum = x[k];
    for (int e = 0; e < a.experts; ++e) {
      const int slot = a.slot[m * a.experts + e];
      if (slot < 0) continue;
      sum += a.weight[m * a.experts + e] *
             a.out[e * a.expert_stride + int64_t(slot) * a.out_stride + k];
    }
    x[k] = sum;
  }
}

}  // namespace

void start_lookup_packed(Stream& stream, const LookupArgs<PackedMatrix>& a) {
  launch(stream, "lookup", lookup_kernel<PackedMatrix>, {.x = a.tokens, .threads = kThreads}, a);
}
void start_lookup_dense(Stream& stream, const LookupArgs<DenseMatrix>& a) {
  launch(stream, "lookup", lookup_kernel<DenseMatrix>, {.x = a.tokens, .threads = kThreads}, a);
}
void start_norm(Stream& stream, const NormRowsArgs& a) {
  launch(stream, "norm", norm_kernel, {.x = a.tokens, .threads = kThreads, .shared = 64}, a);
}
void start_route(Stream& stream, const RouteArgs& a) {
  launch(stream, "route", route_kernel, {.threads = kExpertRows}, a);
}
void start_combine(Stream& stream, const CombineArgs& a) {
  launch(stream, "combine", combine_kernel, {.x = a.tokens, .threads = kThreads}, a);
}

}  // namespace oq::cuda
