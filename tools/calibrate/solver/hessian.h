#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "tools/calibrate/solver/linalg.h"

namespace oq::calibrate {

/// What the linears that share an input need to know of it, over N calibration windows:
///   hessian  H = (2/N) sum x̂ x̂^T          [C][C], symmetric
///   cross    M = (2/N) sum (x - x̂) x̂^T    [C][C], AWRQ only, otherwise empty
/// where x̂ is the input as the runtime quantizes it, or x itself (Frantar et al. 2022, and AWRQ;
/// AWRQ's own code has 1/N, which cancels).
struct Moments {
  Matrix hessian;
  Matrix cross;
  int64_t windows = 0;
};

/// Sums a linear's inputs window by window. Holds one [C][C] matrix, two with the cross moment.
class MomentAccumulator {
 public:
  /// Throws oq::Error when `channels` is not positive.
  MomentAccumulator(int64_t channels, bool with_cross);

  /// One window, [tokens][channels]. Throws oq::Error naming token and channel of a value that is
  /// not finite.
  void add(ThreadPool& pool, std::span<const float> x);
  /// The same beside its quantized form, of the same size; where there is no cross moment, only x̂
  /// counts.
  void add(ThreadPool& pool, std::span<const float> x, std::span<const float> x_quantized);

  /// Throws oq::Error when no window was added.
  Moments finish() &&;

 private:
  int64_t tokens_of(std::span<const float> x) const;

  int64_t channels_;
  Moments sums_;
  std::vector<float> difference_;
};

std::vector<float> diagonal(const Matrix& h);

/// How the columns of a weight matrix are visited: order[place] = original column, the `weak` weak
/// columns last.
struct ColumnOrder {
  std::vector<uint32_t> order;
  uint32_t weak = 0;
  bool natural = true;  ///< the live columns stand in ascending order

  uint32_t live() const { return uint32_t(order.size()) - weak; }
};

/// Live columns ascending, or by descending `score` (empty: ascending; of equal scores the first
/// goes first), then the weak ones. Throws oq::Error on a weak column that does not exist or that
/// stands twice.
ColumnOrder column_order(int64_t columns, std::span<const uint32_t> weak,
                         std::span<const float> score);

/// damp * mean(diag H) is added to the diagonal. Where Cholesky fails even so, `damp` grows tenfold
/// (to at least 1e-4) and it tries again, up to `retries` times.
struct Damping {
  /// One failed attempt: the column at whose pivot it failed, and the damp that comes next.
  struct Failure {
    double damp;
    uint32_t column;
    double next;
  };

  double damp = 0.01;
  int retries = 5;
  std::function<void(const Failure&)> on_failure = {};
};

/// U with (P^T H P + damping)^-1 = U^T U, P the order; channels that are never active (H_jj = 0)
/// count as 1. Linears with the same input and order may share one.
struct InverseFactor {
  ColumnOrder columns;
  std::vector<uint32_t> dead;  ///< original columns, ascending: their weights are to be 0
  Matrix upper;                ///< [C][C], rows and columns in the order's places
  double damp = 0;             ///< that was used in the end
};

/// Memory: one [C][C] matrix beside H. Throws oq::Error when H is not finite, not square, does not
/// fit the order, or cannot be factored with any damping.
InverseFactor invert(ThreadPool& pool, const Matrix& hessian, ColumnOrder order,
                     const Damping& damping = {});

/// sqrt(tr(D H D^T) / tr(W H W^T)) with D = W - Q: the relative error of the outputs on the
/// calibration inputs. 0 when the layer's output is 0.
double relative_output_error(ThreadPool& pool, const Matrix& w, const Matrix& q,
                             const Matrix& hessian);

/// sqrt(|W - Q|^2 / |W|^2); 0 when W is 0.
double relative_weight_error(const Matrix& w, const Matrix& q);

}  // namespace oq::calibrate
