/// Rounding to nearest: the baselines RTN and SmoothQuant (which is RTN behind smoothing), and
/// "act-only", which leaves weights alone and shows what quantized activations cost by themselves.

#include <cmath>

#include "tools/calibrate/methods/method.h"
#include "tools/calibrate/solver/hessian.h"

namespace oq::calibrate {
namespace {

class Rounding final : public Method {
 public:
  bool needs_text() const override { return false; }

  void quantize(BlockJob& job) override {
    const Options& o = job.options();
    if (!o.scheme.quantizes_weights()) return;
    const GridOptions grid{.packing = packing_of(o.scheme), .tuning = o.tuning};
    for (const auto& [name, linear] : job.weights().linears) {
      auto q = round(job, name, linear.weight, grid);
      LinearReport report{.name = job.full_name(name), .output_error = NAN};
      report.weight_error = relative_weight_error(linear.weight, q.dequantize());
      job.store(name, std::move(q), std::move(report));
    }
  }

 private:
  static QuantizedLinear round(BlockJob& job, const std::string& name, const Matrix& w,
                               const GridOptions& grid) {
    return with_place(job.full_name(name), [&] { return round_to_nearest(job.pool(), w, grid); });
  }
};

}  // namespace

std::unique_ptr<Method> make_rounding(const Options&) { return std::make_unique<Rounding>(); }

}  // namespace oq::calibrate
