#pragma once

#include <span>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "tools/calibrate/learn/group_grid.h"
#include "tools/calibrate/solver/quantized_linear.h"

namespace oq::calibrate {

/// Learnable weight clipping (LWC, Shao et al. 2023, eq. 2): the range of a group's weights is
/// sigmoid(lower) min .. sigmoid(upper) max. [rows][groups] both; as gradients, of the same shape.
struct Clipping {
  Matrix upper, lower;

  static constexpr float kStart = 4.0f;  ///< sigmoid: 0.982

  Clipping() = default;
  Clipping(int64_t rows, int64_t groups, float start);
};

/// Fake quantization of a linear's weights, as OmniQuant and ABQ have it, with all gradients. With
/// L steps (the largest code; ABQ's five levels have 4 where codes of 2 bits have 3) and the
/// clipped range low .. high, in which 0 need not lie:
///   asymmetric  s = clip((high - low) / L, 1e-5, 1e4), z = R(clip(-low / s, -1e4, 1e4))
///   symmetric   s = clip(max(|low|, |high|) / z, 1e-5, 1e4), z the packing's constant
///   Q(w) = s (clip(R(w / s) + z, 0, L) - z)
/// Rounding passes gradients through, but for z, which has none unless `Bounds::apart` says so;
/// gradients of the range go to the extreme weights, in equal parts where several are equal
/// (torch's amax). One thread at a time.
class WeightQuantizer {
 public:
  /// How an asymmetric range's bounds learn.
  enum class Bounds {
    together,  ///< as in the references: a bound acts through s alone, so that what moves one end
               ///< moves the other against it
    apart,     ///< z passes gradients through as well, so that clipped weights move their own end
  };

  /// `stored_scales`: s is rounded to the f16 that a file holds, straight through; otherwise it
  /// stays fp32 as in the references' tests. Throws oq::Error where the packing is none.
  WeightQuantizer(int64_t rows, int64_t cols, const Packing& packing, bool stored_scales = true,
                  Bounds bounds = Bounds::together);

  /// From now on `forward` and `finish` work as OmniQuant's code does on half tensors: logits of
  /// bounds are rounded to f16, and so is what each operation on them, on ranges, scales and
  /// weights makes. PRECOND: weights are f16's. `backward` is of fp32.
  void use_f16() { f16_ = true; }

  /// From now on these columns, ascending, keep their weights in f16, or bf16, straight through:
  /// they have no part in ranges. Before anything else is called.
  void keep_weak(std::vector<uint32_t> columns, bool bf16);

  const Packing& packing() const { return packing_; }
  int64_t groups() const { return groups_; }
  /// [rows][groups], of the last `forward`.
  const Matrix& scales() const { return scales_; }
  const Matrix& zeros() const { return zeros_; }

  /// Bounds from which to start that clip as the best of a search over grids does (Tuning::mse of
  /// `options`, solver/grid.h), within a factor of 0.02 .. 0.982. `w` as in `forward`.
  /// `importance` [cols], or empty, is the search's.
  Clipping searched(ThreadPool& pool, const Matrix& w, const GridOptions& options,
                    std::span<const float> importance = {}) const;

  /// out = Q(w), [rows][cols]. Throws oq::Error naming the row whose weights are not finite, and a
  /// weak weight that does not fit its 16 bits.
  void forward(ThreadPool& pool, const Matrix& w, const Clipping& clipping, Matrix& out);

  /// Of the last `forward`: takes dQ in `gradient`, writes the gradients of `clipping`, and, with
  /// `to_weights`, makes `gradient` that of w; without, leaves it as it was.
  void backward(ThreadPool& pool, const Matrix& w, const Clipping& clipping, Matrix& gradient,
                Clipping& d_clipping, bool to_weights) const;

  /// The codes of the last `forward`: dequantized, they are what it wrote, bit for bit. Zero
  /// points take 16 bits where one lies outside the codes. PRECOND: stored_scales.
  QuantizedLinear finish(const Matrix& w) const;

 private:
  struct Range;

  /// Of an operation.
  float rounded(float v) const { return f16_ ? as_f16(v) : v; }
  const float* live(std::span<const float> row, std::vector<float>& masked) const;
  float weak_weight(const Matrix& w, int64_t row, uint32_t column) const;
  Range range(const float* w, int64_t n) const;
  float factor(const Matrix& logits, int64_t row, int64_t group) const;
  GroupGrid grid(int64_t row, int64_t group) const;
  float level(const GroupGrid& grid, float w) const;
  void fit(int64_t row, int64_t group, const Range& r, const Clipping& clipping);
  void backward_group(int64_t row, int64_t group, const float* w, int64_t n, float* d,
                      const Clipping& clipping, Clipping& d_clipping, bool to_weights) const;

  int64_t rows_, cols_, groups_, group_;
  Packing packing_;
  bool stored_scales_, f16_ = false;
  Bounds bounds_;
  std::vector<uint32_t> weak_;
  const cpu::Kernels& kernels_;
  Matrix scales_, zeros_;
};

}  // namespace oq::calibrate
