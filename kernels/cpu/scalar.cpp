/// The CPU kernels in plain C++: what runs where no SIMD table does, and a second opinion on the
/// SIMD ones. Regime: any CPU. Written to be read and to vectorize well enough by itself.

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/cpu/kernels.h"
#include "kernels/kv_grid.h"

namespace oq::cpu {
namespace {

constexpr int64_t kLanes = kPanelRows;

/// 16 columns from x, of which `live` are there; returns scale * sum of codes.
float quantize_columns(const float* x, int64_t live, int8_t* codes, float& scale) {
  float top = 0, poison = 0;  // a NaN or Inf makes the scale a NaN, so that it is seen later
  for (int64_t k = 0; k < live; ++k) {
    top = std::max(top, std::fabs(x[k]));
    poison += x[k] * 0.0f;
  }
  scale = top / 127.0f + poison;
  const float inv = top > 0 ? 127.0f / top : 0.0f;
  int sum = 0;
  for (int64_t k = 0; k < kActCols; ++k) {
    const float v = k < live ? std::nearbyint(x[k] * inv) : 0.0f;
    const int code = std::fabs(v) <= 127.0f ? int(v) : 0;
    codes[k] = int8_t(code);
    sum += code;
  }
  return scale * float(sum);
}

void quantize_row(const float* x, int64_t n, int8_t* codes, float* scales, float* sums,
                  int64_t blocks) {
  for (int64_t b = 0; b < blocks; ++b) {
    sums[b] = 0;
    for (int64_t h = 2 * b; h < 2 * b + 2; ++h) {
      const int64_t first = h * kActCols, live = std::clamp<int64_t>(n - first, 0, kActCols);
      sums[b] += quantize_columns(x + first, live, codes + first, scales[h]);
    }
  }
}

void range(const float* x, int64_t n, float* low, float* high) {
  float poison = 0;
  *low = *high = x[0];
  for (int64_t i = 0; i < n; ++i) {
    *low = std::min(*low, x[i]);
    *high = std::max(*high, x[i]);
    poison += x[i] * 0.0f;
  }
  *low += poison;
  *high += poison;
}

void quantize_row_to(const ActivationGrid& grid, const float* x, int64_t n, int8_t* codes,
                     int32_t* sums, int64_t blocks) {
  for (int64_t b = 0; b < blocks; ++b) {
    int sum = 0;
    for (int64_t k = b * kBlockCols; k < (b + 1) * int64_t(kBlockCols); ++k) {
      const float code = k < n ? grid.code(x[k]) - grid.base() : 0.0f;
      codes[k] = std::fabs(code) <= 128.0f ? int8_t(code) : int8_t(0);  // a NaN is in the scale
      sum += codes[k];
    }
    sums[b] = sum;
  }
}

/// Decodes one column block of a panel: codes[column][row].
class BlockDecoder {
 public:
  explicit BlockDecoder(const PackedLayout& l) : layout_(l) {}

  void decode(const uint8_t* block, uint8_t codes[][kLanes]) const {
    const uint32_t bits = layout_.field_bits;
    const uint32_t whole = 8 / bits, direct = whole * bits, left = 8 - direct;
    const uint32_t mask = (1u << bits) - 1;
    for (uint32_t byte = 0; byte < 32; ++byte) {
      const uint32_t row = byte / 4, c = byte % 4;
      for (uint32_t d = 0; d < direct; ++d) {
        const uint8_t v = block[32 * (d % bits) + byte];
        put(codes, 4 * d + c, row, uint8_t((v >> (d / bits * bits)) & mask));
      }
      if (left == 0) continue;
      uint64_t spill = 0;
      for (uint32_t j = 0; j < bits; ++j) {
        spill |= uint64_t(block[32 * j + byte] >> direct) << (j * left);
      }
      for (uint32_t d = direct; d < 8; ++d) {
        put(codes, 4 * d + c, row, uint8_t((spill >> ((d - direct) * bits)) & mask));
      }
    }
  }

 private:
  void put(uint8_t codes[][kLanes], uint32_t field, uint32_t row, uint8_t value) const {
    if (!layout_.packing.five_levels) {
      codes[field][row] = value;
      return;
    }
    codes[field][row] = value % 5;
    codes[field + 32][row] = value / 5 % 5;
    codes[field + 64][row] = std::min<uint8_t>(value / 25, 4);
  }

  const PackedLayout& layout_;
};

void load_group(const PackedView& w, int64_t panel, int64_t group, float scale[kLanes],
                float zero[kLanes]) {
  for (int64_t r = 0; r < kLanes; ++r) {
    const auto row = uint64_t(panel * kLanes + r);
    scale[r] = w.scale(row, uint64_t(group));
    zero[r] = float(w.zero(row, uint64_t(group)));
  }
}

/// Walks one panel. `block_sum(codes, k, acc)` adds the 32 columns from k to the group's sums and
/// `end_group(group, scale, zero, acc)` closes a group.
template <class BlockSum, class EndGroup>
void walk_panel(const PackedView& w, int64_t panel, BlockSum&& block_sum, EndGroup&& end_group) {
  const PackedLayout& l = w.layout();
  const BlockDecoder decoder(l);
  uint8_t codes[96][kLanes];
  float scale[kLanes] = {}, zero[kLanes] = {};
  int64_t group = -1;
  for (uint64_t k = 0; k < l.padded_cols; k += kBlockCols) {
    if (k % l.block_cols == 0) {
      decoder.decode(w.codes(uint64_t(panel)) + k / l.block_cols * l.field_bits * 32, codes);
    }
    if (k >= l.cols) break;  // a w2* block may be padding from its middle on
    if (const auto g = int64_t(k / l.group); g != group) {
      if (group >= 0) end_group(group, scale, zero);
      group = g;
      load_group(w, panel, group, scale, zero);
    }
    block_sum(codes + k % l.block_cols, int64_t(k), zero);
  }
  end_group(group, scale, zero);
}

void add_weak(const PackedView& w, int64_t panel, const float* weak_x, float acc[kLanes]) {
  for (uint32_t i = 0; i < w.layout().packing.weak_columns; ++i) {
    for (int64_t r = 0; r < kLanes; ++r) {
      acc[r] += w.weak_weight(uint64_t(panel * kLanes + r), i) * weak_x[i];
    }
  }
}

void store_rows(const PackedView& w, int64_t panel, const float acc[kLanes], float* y) {
  const int64_t first = panel * kLanes;
  const int64_t n = std::min<int64_t>(kLanes, int64_t(w.layout().rows) - first);
  for (int64_t r = 0; r < n; ++r) y[first + r] = acc[r];
}

void packed_int8(const PackedView& w, const Int8Rows& x, const float* weak_x, int64_t tokens,
                 int64_t begin, int64_t end, MutableRows y) {
  for (int64_t p = begin; p < end; ++p) {
    for (int64_t m = 0; m < tokens; ++m) {
      float acc[kLanes] = {}, group_acc[kLanes] = {}, x_sum = 0;
      walk_panel(
          w, p,
          [&](const uint8_t(*codes)[kLanes], int64_t k, const float*) {
            const int8_t* q = x.row_codes(m) + k;
            for (int64_t first : {int64_t(0), kActCols}) {
              int32_t dot[kLanes] = {};
              for (int64_t i = first; i < first + kActCols; ++i) {
                for (int64_t r = 0; r < kLanes; ++r) dot[r] += int32_t(codes[i][r]) * q[i];
              }
              const float s = x.row_scales(m)[(k + first) / kActCols];
              for (int64_t r = 0; r < kLanes; ++r) group_acc[r] += s * float(dot[r]);
            }
            x_sum += x.row_sums(m)[k / kBlockCols];
          },
          [&](int64_t, const float* scale, const float* zero) {
            for (int64_t r = 0; r < kLanes; ++r) {
              acc[r] += scale[r] * (group_acc[r] - zero[r] * x_sum);
              group_acc[r] = 0;
            }
            x_sum = 0;
          });
      add_weak(w, p, weak_x + m * w.layout().packing.weak_columns, acc);
      store_rows(w, p, acc, y.row(m));
    }
  }
}

/// Sums in 64 bits: no zero point nor length overflows them.
void packed_grid(const PackedView& w, const GridRows& x, const double* live_sums,
                 const float* weak_x, int64_t tokens, int64_t begin, int64_t end, MutableRows y) {
  for (int64_t p = begin; p < end; ++p) {
    for (int64_t m = 0; m < tokens; ++m) {
      double acc[kLanes] = {};
      int64_t dot[kLanes] = {}, x_sum = 0;
      walk_panel(
          w, p,
          [&](const uint8_t(*codes)[kLanes], int64_t k, const float*) {
            const int8_t* q = x.row_codes(m) + k;
            for (int64_t i = 0; i < kBlockCols; ++i) {
              for (int64_t r = 0; r < kLanes; ++r) dot[r] += int64_t(codes[i][r]) * q[i];
            }
            x_sum += x.row_sums(m)[k / kBlockCols];
          },
          [&](int64_t, const float* scale, const float* zero) {
            for (int64_t r = 0; r < kLanes; ++r) {
              acc[r] += double(scale[r]) * double(dot[r] - int64_t(zero[r]) * x_sum);
              dot[r] = 0;
            }
            x_sum = 0;
          });
      float sums[kLanes];
      for (int64_t r = 0; r < kLanes; ++r) {
        const double shifted = double(x.shifts[size_t(m)]) * live_sums[p * kLanes + r];
        sums[r] = float(double(x.scales[size_t(m)]) * (acc[r] + shifted));
      }
      add_weak(w, p, weak_x + m * w.layout().packing.weak_columns, sums);
      store_rows(w, p, sums, y.row(m));
    }
  }
}

void packed_exact(const PackedView& w, Rows x, const float* weak_x, int64_t tokens, int64_t begin,
                  int64_t end, MutableRows y) {
  for (int64_t p = begin; p < end; ++p) {
    for (int64_t m = 0; m < tokens; ++m) {
      float acc[kLanes] = {}, group_acc[kLanes] = {};
      walk_panel(
          w, p,
          [&](const uint8_t(*codes)[kLanes], int64_t k, const float* zero) {
            const float* v = x.row(m) + k;
            for (int64_t i = 0; i < kBlockCols; ++i) {
              for (int64_t r = 0; r < kLanes; ++r) {
                group_acc[r] += (float(codes[i][r]) - zero[r]) * v[i];
              }
            }
          },
          [&](int64_t, const float* scale, const float*) {
            for (int64_t r = 0; r < kLanes; ++r) {
              acc[r] += scale[r] * group_acc[r];
              group_acc[r] = 0;
            }
          });
      add_weak(w, p, weak_x + m * w.layout().packing.weak_columns, acc);
      store_rows(w, p, acc, y.row(m));
    }
  }
}

template <class T>
float dot(const T* w, const float* x, int64_t n) {
  std::array<float, 8> acc{};
  int64_t k = 0;
  for (; k + 8 <= n; k += 8) {
    for (int64_t i = 0; i < 8; ++i) acc[size_t(i)] += to_float(w[k + i]) * x[k + i];
  }
  float sum = 0;
  for (float a : acc) sum += a;
  for (; k < n; ++k) sum += to_float(w[k]) * x[k];
  return sum;
}

void dense(const DenseView& w, Rows x, int64_t tokens, int64_t begin, int64_t end, MutableRows y) {
  with_elements(w, [&](const auto* elements) {
    for (int64_t n = begin; n < end; ++n) {
      const auto* row = elements + n * w.cols;
      for (int64_t m = 0; m < tokens; ++m) y.row(m)[n] = dot(row, x.row(m), w.cols);
    }
  });
}

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y) {
  std::array<float, 8> acc{};
  for (int64_t i = 0; i < n; ++i) acc[size_t(i % 8)] += x[i] * x[i];
  float sum = 0;
  for (float a : acc) sum += a;
  const float inv = 1.0f / std::sqrt(sum / float(n) + eps);
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * inv * weight[i];
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n,
                float* y) {
  std::array<float, 8> sums{}, squares{};
  for (int64_t i = 0; i < n; ++i) sums[size_t(i % 8)] += x[i];
  float mean = 0, variance = 0;
  for (float s : sums) mean += s;
  mean /= float(n);
  for (int64_t i = 0; i < n; ++i) squares[size_t(i % 8)] += (x[i] - mean) * (x[i] - mean);
  for (float s : squares) variance += s;
  const float inv = 1.0f / std::sqrt(variance / float(n) + eps);
  for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * inv * weight[i] + bias[i];
}

float silu(float x) { return x / (1.0f + std::exp(-x)); }
float gelu(float x) { return 0.5f * x * std::erfc(-x * 0.70710678f); }
float gelu_tanh(float x) {
  return x / (1.0f + std::exp(-1.5957691f * (x + 0.044715f * x * x * x)));
}
float relu(float x) { return std::max(x, 0.0f); }

void activate(Activation activation, const float* gate, const float* up, int64_t n, float* y) {
  const auto apply = [&](auto f) {
    for (int64_t i = 0; i < n; ++i) y[i] = up == nullptr ? f(gate[i]) : f(gate[i]) * up[i];
  };
  switch (activation) {
    case Activation::silu:
      return apply(silu);
    case Activation::gelu:
      return apply(gelu);
    case Activation::gelu_tanh:
      return apply(gelu_tanh);
    case Activation::relu:
      return apply(relu);
  }
}

template <class T>
float key_of(const KvView<T>& kv, int64_t t, int64_t d, int64_t head_dim) {
  return to_float(kv.keys[(t / kKeyTile * head_dim + d) * kKeyTile + t % kKeyTile]);
}
template <class T>
float value_of(const KvView<T>& kv, int64_t t, int64_t d, int64_t head_dim) {
  return to_float(kv.values[t * head_dim + d]);
}
float key_of(const KvCodes& kv, int64_t t, int64_t d, int64_t head_dim) {
  return KvGrid{kv.key_scales[t], kv.key_lows[t]}.value(
      kv.keys[(t / kKeyTile * head_dim + d) * kKeyTile + t % kKeyTile]);
}
float value_of(const KvCodes& kv, int64_t t, int64_t d, int64_t head_dim) {
  return KvGrid{kv.value_scales[t], kv.value_lows[t]}.value(kv.values[t * head_dim + d]);
}

template <class Cache>
void attend_one(const float* q, int64_t head_dim, const Cache& kv, int64_t begin, int64_t end,
                const float* bias, float* scores, AttentionPart& part) {
  part.top = -std::numeric_limits<float>::infinity();
  part.sum = 0;
  std::fill_n(part.out, head_dim, 0.0f);
  for (int64_t t = begin; t < end; ++t) {
    float score = bias == nullptr ? 0.0f : bias[t];
    for (int64_t d = 0; d < head_dim; ++d) score += q[d] * key_of(kv, t, d, head_dim);
    scores[t - begin] = score;
    part.top = std::max(part.top, score);
  }
  for (int64_t t = begin; t < end; ++t) {
    const float p = std::exp(scores[t - begin] - part.top);
    part.sum += p;
    for (int64_t d = 0; d < head_dim; ++d) part.out[d] += p * value_of(kv, t, d, head_dim);
  }
}

template <class Cache>
void attend(const float* q, int64_t queries, int64_t head_dim, Cache kv, Stretch stretch,
            const Sight* sights, float* scores, AttentionPart* parts) {
  for (int64_t i = 0; i < queries; ++i) {
    const Sight& s = sights[i];
    attend_one(q + i * head_dim, head_dim, kv, std::max(stretch.begin, s.first),
               std::min(stretch.end, s.end), s.bias, scores, parts[i]);
  }
}

}  // namespace

const Kernels& scalar_kernels() {
  static const Kernels table = {
      .name = "scalar",
      .quantize_row = quantize_row,
      .range = range,
      .quantize_row_to = quantize_row_to,
      .packed_int8 = packed_int8,
      .packed_grid = packed_grid,
      .packed_exact = packed_exact,
      .dense = dense,
      .rms_norm = rms_norm,
      .layer_norm = layer_norm,
      .activate = activate,
      .attend_f16 = attend<KvView<f16>>,
      .attend_f32 = attend<KvView<float>>,
      .attend_codes = attend<KvCodes>,
  };
  return table;
}

}  // namespace oq::cpu
