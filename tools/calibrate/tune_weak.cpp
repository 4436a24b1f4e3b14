#include "tools/calibrate/tune_weak.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "tools/calibrate/calibration_text.h"
#include "tools/calibrate/learn/adamw.h"
#include "tools/calibrate/learn/weak_tuner.h"
#include "tools/calibrate/places.h"

namespace oq::calibrate {
namespace {

constexpr const char* kHint = "lower --tune-lr";

/// Shows the tuning as one job, counted in windows that go forwards.
class Steps {
 public:
  static constexpr int64_t kStep =
      4;  ///< forwards, then block by block again, and backwards at twice the cost

  Steps(const Observer& observer, int64_t total) : observer_(observer), total_(total) {}

  void done(int64_t windows, std::string_view what) {
    done_ += windows;
    if (observer_.progress) observer_.progress(double(done_), double(total_), what);
  }

 private:
  const Observer& observer_;
  int64_t total_, done_ = 0;
};

/// Mean loss over the windows.
double measure(WeakTuner& tuner, const CalibrationText& text, Steps& steps) {
  double sum = 0;
  for (const auto& window : text.windows) {
    sum += tuner.loss(window);
    steps.done(1, "measuring the loss");
  }
  return sum / double(text.windows.size());
}

void learn(WeakTuner& tuner, const CalibrationText& text, const WeakTuning& tuning, Steps& steps) {
  AdamW optimizer(kHint);
  for (auto& [name, values] : tuner.weights()) {
    optimizer.add(name + ", weak columns", values, tuner.gradients().at(name), tuning.rate);
  }
  for (int64_t step = 0; step < tuning.steps; ++step) {
    const size_t window = size_t(step) % text.windows.size();
    const double loss = tuner.learn(text.windows[window]);
    if (!std::isfinite(loss)) {
      throw Error({.what = "the loss is not finite",
                   .where = fmt::format("{}, step {}, calibration window {}",
                                        tuner.first_not_finite(), step + 1, window),
                   .hint = kHint});
    }
    optimizer.step();
    steps.done(Steps::kStep, fmt::format("step {}, loss {:.4f}", step + 1, loss));
  }
}

/// Refuses what could not be tuned or written, before any work is done.
void check(const Options& o, const File& file) {
  const ModelConfig config = ModelConfig::load(file);
  check_tensors(file, config);
  check_places({{"the input", o.input}, {"the text", text_file(o.text)}}, {{"-o", o.output}});
  if (o.text.empty()) {
    throw Error({.what = "tuning needs a text",
                 .where = o.input.string(),
                 .hint = "give --text FILE or --text self"});
  }
  check_windows(o, file, config);
}

Metadata provenance(const Options& o, const WeakTuning& tuning, const CalibrationText& text) {
  Metadata m;
  m.set("calibration.options",
        fmt::format("--tune-weak {} --tune-lr {} --windows {} --window {} --seed {}", tuning.steps,
                    tuning.rate, o.windows, o.window, o.seed));
  m.set("calibration.text", text.source);
  m.set("calibration.text_crc32c", fmt::format("{:08x}", text.crc));
  m.set("calibration.tool", std::string("oq-calibrate " OQ_VERSION));
  return m;
}

}  // namespace

TuneResult tune_weak(const Options& options, const WeakTuning& tuning, const Observer& observer) {
  Options o = options;
  o.windows = std::min(o.windows, tuning.steps);  // no step would come to the others
  const auto file = File::open(o.input);
  check(o, *file);
  WeakTuner tuner(file, o.window, o.threads);
  // Made now, so that a place which cannot be written shows itself before the work.
  Writer out(o.output, tuner.weights().size(), kWeakMetadataRoom);
  const CalibrationText text = calibration_text(file, o, observer);
  Steps steps(observer, 2 * int64_t(text.windows.size()) + Steps::kStep * tuning.steps);
  TuneResult result;
  result.before = measure(tuner, text, steps);
  learn(tuner, text, tuning, steps);
  result.after = measure(tuner, text, steps);
  if (!(result.after < result.before) && observer.notice) {
    observer.notice(fmt::format("the loss did not fall: {:.4f}, before {:.4f}; {}", result.after,
                                result.before, kHint));
  }
  write_weak_file(out, *file, tuner.weights(), provenance(o, tuning, text));
  for (const auto& entry : tuner.weights()) result.weights += entry.second.size();
  result.bytes = File::open(o.output)->bytes();
  return result;
}

}  // namespace oq::calibrate
