#include "tools/calibrate/tune_weak.h"

#include <cmath>

#include <fmt/format.h>

#include "tools/calibrate/calibration_text.h"
#include "tools/calibrate/learn/adamw.h"
#include "tools/calibrate/learn/weak_tuner.h"

namespace oq::calibrate {
namespace {

constexpr const char* kHint = "lower --tune-lr";

/// Mean loss over the windows.
double measure(WeakTuner& tuner, const CalibrationText& text) {
  double sum = 0;
  for (const auto& window : text.windows) sum += tuner.loss(window);
  return sum / double(text.windows.size());
}

void learn(WeakTuner& tuner, const CalibrationText& text, const WeakTuning& tuning,
           const Observer& observer) {
  AdamW optimizer(kHint);
  for (auto& [name, values] : tuner.weights()) {
    optimizer.add(name + ", weak columns", values, tuner.gradients().at(name), tuning.rate);
  }
  for (int64_t step = 0; step < tuning.steps; ++step) {
    const size_t window = size_t(step) % text.windows.size();
    const double loss = tuner.learn(text.windows[window]);
    if (!std::isfinite(loss)) {
      throw Error({.what = "the loss is not finite",
                   .where = fmt::format("step {}, calibration window {}", step + 1, window),
                   .hint = kHint});
    }
    optimizer.step();
    if (observer.progress) {
      observer.progress(double(step + 1), double(tuning.steps), fmt::format("loss {:.4f}", loss));
    }
  }
}

}  // namespace

TuneResult tune_weak(const Options& o, const WeakTuning& tuning, const Observer& observer) {
  const auto file = File::open(o.input);
  check_tensors(*file, ModelConfig::load(*file));
  std::error_code absent;
  if (std::filesystem::equivalent(o.input, o.output, absent)) {
    throw Error({.what = "is the input itself",
                 .where = o.output.string(),
                 .hint = "give another name with -o"});
  }
  if (o.text.empty()) {
    throw Error({.what = "tuning needs a text",
                 .where = o.input.string(),
                 .hint = "give --text FILE or --text self"});
  }
  WeakTuner tuner(file, o.window, o.threads);
  const CalibrationText text = calibration_text(file, o, observer);
  TuneResult result;
  result.before = measure(tuner, text);
  learn(tuner, text, tuning, observer);
  result.after = measure(tuner, text);
  Metadata metadata;
  metadata.set("calibration.options",
               fmt::format("--tune-weak {} --tune-lr {} --windows {} --window {} --seed {}",
                           tuning.steps, tuning.rate, o.windows, o.window, o.seed));
  metadata.set("calibration.text", text.source);
  metadata.set("calibration.text_crc32c", fmt::format("{:08x}", text.crc));
  metadata.set("calibration.tool", std::string("oq-calibrate " OQ_VERSION));
  write_weak_file(o.output, *file, tuner.weights(), std::move(metadata));
  for (const auto& entry : tuner.weights()) result.weights += entry.second.size();
  result.bytes = File::open(o.output)->bytes();
  return result;
}

}  // namespace oq::calibrate
