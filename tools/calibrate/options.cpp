#include "tools/calibrate/options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace oq::calibrate {

bool starts_from_inputs(const Options& o) {
  const bool start = learns(o.method) && o.learning.transform && o.parameters.empty();
  return start && (o.scheme.activation_bits < 16 || o.learning.faithful);
}

bool observes_inputs(const Options& o) {
  if (!learns(o.method) || !o.parameters.empty()) return false;
  const bool searches = o.learning.clip && o.tuning == Tuning::mse;
  return searches || (starts_from_inputs(o) && o.act_scales.empty());
}

bool aims_at_own_targets(const Options& o) {
  if (!learns(o.method) || !o.parameters.empty()) return false;
  return o.learning.aug_loss || (o.method == "abq" && o.learning.faithful);
}

bool learns_first_tokens(const Options& o) {
  return learns(o.method) && o.parameters.empty() && o.learning.first_tokens;
}

bool heads_share_range(const Options& o, const ModelConfig& config) {
  const bool quantizes = o.scheme.query_bits < 16 || o.scheme.kv_bits < 16;
  return learns(o.method) && o.learning.faithful && quantizes &&
         config.positions == PositionKind::learned;
}

std::string applied_options(const Options& o) {
  std::string t = fmt::format("--method {} --scheme {}", o.method, o.scheme.str());
  if (!learns(o.method)) return t;
  const Learning& l = o.learning;
  return t + (l.clip ? "" : " --no-lwc") + (l.transform ? " --let" : " --no-let") +
         (l.faithful ? " --faithful" : "");
}

std::string training_options(const Options& o) {
  std::string t = fmt::format("--tuning {}", o.tuning == Tuning::mse ? "mse" : "minmax");
  if (!o.text.empty()) {
    t += fmt::format(" --windows {} --window {} --seed {}", o.windows, o.window, o.seed);
  }
  if (o.target_bits > 0) t += fmt::format(" --target-bits {}", o.target_bits);
  if (o.weak_columns > 0) t += fmt::format(" --weak-columns {}", o.weak_columns);
  if (!o.layers.empty()) t += fmt::format(" --layers {}", fmt::join(o.layers, ","));
  if (o.paper_counts) t += " --paper-counts";
  if (o.weak_bf16) t += " --weak-type bf16";
  if (!o.act_order) t += " --no-act-order";
  if (o.static_groups) t += " --static-groups";
  if (o.true_sequential) t += " --true-sequential";
  t += fmt::format(" --damp {}", o.damp);
  if (learns(o.method)) {
    const Learning& l = o.learning;
    t += fmt::format(" --epochs {} --batch-size {}", l.epochs, l.batch);
    if (l.clip) t += fmt::format(" --lwc-lr {}", l.clip_rate);
    if (l.transform) t += fmt::format(" --let-lr {}", l.transform_rate);
    if (starts_from_inputs(o) && !o.smooth) t += fmt::format(" --alpha {}", o.alpha);
    t += l.aug_loss ? " --aug-loss" : " --no-aug-loss";
    t += l.first_tokens ? " --first-tokens" : " --no-first-tokens";
    if (l.attention_share > 0) t += fmt::format(" --attention-loss {}", l.attention_share);
    if (!o.act_scales.empty()) t += " --act-scales " + o.act_scales.filename().string();
    if (!o.act_shifts.empty()) t += " --act-shifts " + o.act_shifts.filename().string();
  }
  if (o.smooth) t += fmt::format(" --smooth --alpha {} --min-scale {}", o.alpha, o.min_scale);
  // Sums over windows and columns have another order with other threads.
  if (o.threads > 0 && !o.text.empty()) t += fmt::format(" --threads {}", o.threads);
  return t;
}

}  // namespace oq::calibrate
