/// Weights in f32, f16 or bf16 times 1 to 8 tokens: routers, heads of 16 bits, unquantized models.
///
/// Regime: decode. Bound: memory. Layout: row by row, 16-byte loads, a warp reads 512 bytes of a
///   row at once.
/// Work split: linear.h, but that a warp computes rows w and w + 8 of the tile alone, so that a
///   row's sum needs shuffles and no shared memory.
/// Sums: each lane adds its products in order of columns in fp32, then the lanes by xor.
/// Measured: not measured.

#include "kernels/cuda/linear.h"

namespace oq::cuda {
namespace {

template <class T>
struct Plain;
template <>
struct Plain<float> {
  static constexpr int kPerLoad = 4;
  OQ_DEVICE static float at(const Words4& v, int i) { return bits_to_float(v.w[i]); }
};
struct Half;
template <>
struct Plain<Half> {
  static constexpr int kPerLoad = 8;
  OQ_DEVICE static float at(const Words4& v, int i) {
    return half_to_float(uint16_t(v.w[i / 2] >> (i % 2 * 16)));
  }
};
struct Brain;
template <>
struct Plain<Brain> {
  static constexpr int kPerLoad = 8;
  OQ_DEVICE static float at(const Words4& v, int i) {
    return bits_to_float(v.w[i / 2] >> (i % 2 * 16) << 16);
  }
};

template <class T>
class DenseMultiplier {
 public:
  static constexpr int kSlices = 1;
  OQ_DEVICE static int slices() { return 1; }

  OQ_DEVICE DenseMultiplier(const DenseMatrix& w, int tile) : w_(w), tile_(tile) {}
  OQ_DEVICE static const uint32_t* weak_mask() { return nullptr; }

  static size_t slab_bytes(int cols, int tokens, int most) {
    return size_t(slab_cols(cols, tokens, most)) * size_t(tokens) * sizeof(float);
  }

  OQ_DEVICE void run(const BlockInput& input, int room, Slab slab, float* parts) {
    float sums[2][kMaxTokens] = {};
    const int step = slab_cols(w_.cols, room, slab.bytes);
    auto* x = reinterpret_cast<float*>(slab.data);  // [token][step]
    for (int from = 0; from < w_.cols; from += step) {
      if (from > 0) sync_block();
      for (int m = 0; m < input.tokens(); ++m) {
        for (int k = thread_id(); k < step; k += kThreads) {
          x[m * step + k] = input.live(m, from + k);
        }
      }
      sync_block();
      OQ_UNROLL
      for (int r = 0; r < 2; ++r) multiply(input.tokens(), from, step, x, r, sums[r]);
    }
    OQ_UNROLL
    for (int r = 0; r < 2; ++r) {
      OQ_UNROLL
      for (int m = 0; m < kMaxTokens; ++m) {
        if (m >= input.tokens()) continue;
        const float sum = warp_reduce<Sum>(sums[r][m]);
        if (lane_id() == 0) parts[(warp_id() + 8 * r) * room + m] = sum;
      }
    }
  }

 private:
  static constexpr int kStep = 32 * Plain<T>::kPerLoad;  ///< columns of one load of a warp

  /// Columns at once: a multiple of a warp's load, so that no load is cut.
  static constexpr int slab_cols(int cols, int tokens, int most) {
    const int whole = (cols + kStep - 1) / kStep * kStep;
    const int fit = most / int(sizeof(float)) / tokens / kStep * kStep;
    return whole < fit ? whole : fit;
  }

  OQ_DEVICE void multiply(int tokens, int from, int step, const float* x, int r,
                          float sums[kMaxTokens]) const {
    const int row = tile_ * kTileRows + warp_id() + 8 * r;
    if (row >= w_.rows) return;
    constexpr int kPer = Plain<T>::kPerLoad;
    const auto* weights =
        static_cast<const Words4*>(w_.data) + (int64_t(row) * w_.stride + from) / kPer;
    for (int k = kPer * lane_id(); k < step && from + k < w_.stride; k += kStep) {
      const Words4 w = load_stream(weights + k / kPer);
      OQ_UNROLL
      for (int m = 0; m < kMaxTokens; ++m) {
        if (m >= tokens) continue;
        OQ_UNROLL
        for (int i = 0; i < kPer; ++i) sums[m] += Plain<T>::at(w, i) * x[m * step + k + i];
      }
    }
  }

  const DenseMatrix& w_;
  int tile_;
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2) dense_kernel(DenseArgs args) {
  run_linears<DenseMultiplier<T>>(args);
}

template <class T>
void start(Stream& stream, const DenseArgs& args) {
  launch_linears<DenseMultiplier<T>>(stream, "dense_linear", dense_kernel<T>, args);
}

}  // namespace

void start_dense_f32(Stream& stream, const DenseArgs& args) { start<float>(stream, args); }
void start_dense_f16(Stream& stream, const DenseArgs& args) { start<Half>(stream, args); }
void start_dense_bf16(Stream& stream, const DenseArgs& args) { start<Brain>(stream, args); }

}  // namespace oq::cuda
