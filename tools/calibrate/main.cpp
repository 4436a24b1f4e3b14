#include <algorithm>
#include <chrono>
#include <fstream>
#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "tools/calibrate/measure.h"
#include "tools/calibrate/methods/method.h"
#include "tools/calibrate/options.h"
#include "tools/calibrate/places.h"
#include "tools/calibrate/report.h"
#include "tools/calibrate/tune_weak.h"
#include "tools/common/cli.h"
#include "tools/common/json.h"
#include "tools/common/text_file.h"

namespace {

using namespace oq;

/// Refuses a scheme while arguments are read, so that a typing error is wrong usage.
std::string check_scheme(const std::string& text) {
  try {
    Scheme::parse(text);
    return {};
  } catch (const Error& e) {
    return e.what();
  }
}

struct Arguments {
  calibrate::Options options;
  calibrate::WeakTuning weak_tuning;
  std::string scheme, tuning, report, weak_type = "f16", perplexity;
  int64_t max_windows = 20;
  bool json = false, quiet = false;
  CLI::Option* method = nullptr;
  // Whose defaults are not fixed.
  CLI::Option *clip = nullptr, *transform = nullptr, *clip_rate = nullptr,
              *transform_rate = nullptr, *aug_loss = nullptr, *first_tokens = nullptr;
};

void add_text_flags(CLI::App& app, calibrate::Options& o) {
  app.add_option("--text", o.text, "calibration text: a file (.txt, .jsonl), or 'self'");
  app.add_option("--windows", o.windows, "windows of text")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--window", o.window, "tokens in a window")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  app.add_option("--seed", o.seed, "of the windows' places")->capture_default_str();
}

void add_solver_flags(CLI::App& app, Arguments& a) {
  calibrate::Options& o = a.options;
  auto* target =
      app.add_option("--target-bits", o.target_bits,
                     "owq: bits per weight with weak columns counted, as in 3.01; auto: "
                     "bits per weight as stored, scales and all, for which widths are mixed");
  target->check(CLI::Range(2.0, 16.0));
  app.add_option("--weak-columns", o.weak_columns, "owq, auto: weak columns per linear, instead")
      ->check(CLI::Range(0, 1 << 20))
      ->excludes(target);
  app.add_option("--weak-type", a.weak_type, "owq, auto: how weak columns are stored, f16 or bf16")
      ->check(CLI::IsMember({"f16", "bf16"}))
      ->capture_default_str();
  app.add_option("--layers", o.layers, "owq: linears that may have weak columns, as in q,k,down")
      ->delimiter(',');
  app.add_flag("--paper-counts", o.paper_counts, "owq: count columns by the paper's own formula");
  app.add_option("--tuning", a.tuning,
                 "how scales are chosen, or from where omniquant starts; mse is the default of "
                 "gptq, owq, awrq, omniquant, abq and auto")
      ->check(CLI::IsMember({"mse", "minmax"}));
  app.add_flag("--act-order,!--no-act-order", o.act_order,
               "visit sensitive columns first (the default), or from left to right; groups stay "
               "those of the columns as they are");
  app.add_flag("--static-groups", o.static_groups,
               "with --no-act-order: choose groups' scales before any feedback");
  app.add_flag("--true-sequential", o.true_sequential,
               "let the later linears of a block see the earlier ones quantized");
  app.add_option("--damp", o.damp, "share of the Hessian's mean diagonal that is added to it")
      ->check(CLI::Range(0.0, 10.0))
      ->capture_default_str();
  app.add_flag("--smooth", o.smooth, "move the size of activations into weights first");
  app.add_option("--alpha", o.alpha, "smoothing: how much of it")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--min-scale", o.min_scale, "smoothing: the smallest scale")
      ->check(CLI::Range(1e-6, 1.0))
      ->capture_default_str();
}

void add_learning_flags(CLI::App& app, Arguments& a) {
  calibrate::Learning& l = a.options.learning;
  app.add_option("--epochs", l.epochs,
                 "omniquant, abq, auto: times through the windows, for each block")
      ->check(CLI::Range(0, 10000))
      ->capture_default_str();
  app.add_option("--batch-size", l.batch, "omniquant, abq, auto: windows to a step")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  a.clip = app.add_flag("--lwc,!--no-lwc", l.clip,
                        "omniquant, abq, auto: learn clipping of weights (the default)");
  a.transform =
      app.add_flag("--let,!--no-let", l.transform,
                   "omniquant, abq, auto: learn equivalent transformations (the default, but "
                   "for omniquant --faithful where only weights are quantized)");
  const auto rate = [&](const char* name, double& value, const char* what) {
    return app.add_option(name, value, what)->check(CLI::Range(0.0, 1.0))->capture_default_str();
  };
  a.clip_rate = rate("--lwc-lr", l.clip_rate, "omniquant, abq, auto: learning rate of clipping");
  a.transform_rate =
      rate("--let-lr", l.transform_rate, "omniquant, abq, auto: learning rate of transformations");
  a.aug_loss = app.add_flag(
      "--aug-loss,!--no-aug-loss", l.aug_loss,
      "omniquant, abq, auto: learn also towards the full-precision block on the quantized one's "
      "inputs (the default where only weights are quantized, to 2 bits, but for --faithful)");
  a.first_tokens = app.add_flag(
      "--first-tokens,!--no-first-tokens", l.first_tokens,
      "omniquant, abq, auto: learn also from a window of tokens that are each a text's "
      "first (the default where inputs of linears are quantized, but for --faithful)");
  app.add_option("--attention-loss", l.attention_share,
                 "abq: share in the loss of the divergence of attention maps")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  app.add_flag("--faithful", l.faithful,
               "omniquant, abq, auto: learn as the paper's own code does it, with --tuning minmax "
               "unless that is given");
  calibrate::Options& o = a.options;
  app.add_option("--save-params", o.save_parameters,
                 "omniquant, abq: write what was learned to this file as well (.safetensors)");
  app.add_option("--params", o.parameters,
                 "omniquant, abq: apply these instead of learning: what --save-params wrote, or "
                 "OmniQuant's omni_parameters.pth")
      ->check(CLI::ExistingFile)
      ->excludes("--text");
  app.add_option("--act-scales", o.act_scales,
                 "omniquant, abq: start --let from OmniQuant's act_scales.pt")
      ->check(CLI::ExistingFile);
  app.add_option("--act-shifts", o.act_shifts, "omniquant, abq: and from its act_shifts.pt")
      ->check(CLI::ExistingFile)
      ->needs("--act-scales");
}

void print_text(const Arguments& a, const calibrate::Result& r, const calibrate::Measured& m,
                double seconds) {
  tool::report(a.quiet,
               fmt::format("{}: {:.3f} bits per weight, {:.1f} MB; took {:.0f} s and "
                           "{:.0f} MB of memory",
                           a.options.output.string(), r.bits_per_weight, double(r.bytes) / 1e6,
                           seconds, double(tool::peak_memory()) / 1e6));
  if (m.windows == 0) return;
  tool::print("perplexity " + m.text_line() + "\n");
}

void print_json(const Arguments& a, const calibrate::Result& r, const calibrate::Measured& m,
                double seconds) {
  const calibrate::Options& o = a.options;
  auto linears = nlohmann::json::array();
  for (const calibrate::LinearReport& l : r.linears) {
    linears.push_back({{"name", l.name},
                       {"output_error", l.output_error},
                       {"weight_error", l.weight_error},
                       {"bits", l.bits},
                       {"weak_columns", l.weak_columns},
                       {"damp", l.damp}});
  }
  auto parts = nlohmann::json::object();
  for (const calibrate::Part& p : r.parts) parts[p.name] = p.bytes;
  nlohmann::json object = {{"output", o.output.string()},
                           {"method", o.method},
                           {"scheme", o.scheme.str()},
                           {"bits_per_weight", r.bits_per_weight},
                           {"bytes", r.bytes},
                           {"parts", parts},
                           {"seconds", seconds},
                           {"peak_memory", tool::peak_memory()},
                           {"linears", linears},
                           {"losses", r.losses},
                           {"output_errors", r.output_errors}};
  if (m.windows > 0) {
    object["perplexity"] = {{"text", m.text},       {"windows", m.windows},
                            {"window", m.window},   {"full_precision", m.before},
                            {"quantized", m.after}, {"standard_error", m.standard_error}};
  }
  tool::print_object(object);
}

calibrate::Measured measure(const Arguments& a, const std::string& text) {
  const calibrate::Options& o = a.options;
  std::unique_ptr<tool::Progress> progress;
  const auto show = [&](double tokens, double total) {
    if (!progress) {
      progress = std::make_unique<tool::Progress>("perplexity of both", total,
                                                  tool::Progress::Unit{"tokens/s", 1}, a.quiet);
    }
    progress->advance(tokens);
  };
  calibrate::Measured m =
      calibrate::measure(o.input, o.output, text, o.window, a.max_windows, o.threads, show);
  if (progress) progress->finish();
  m.text = a.perplexity;
  return m;
}

/// Defaults that depend on other flags.
void settle_learning(Arguments& a) {
  calibrate::Options& o = a.options;
  const bool faithful = o.learning.faithful;
  if (faithful && a.clip_rate->count() == 0) o.learning.clip_rate = 1e-2;
  if (faithful && a.transform_rate->count() == 0) o.learning.transform_rate = 5e-3;
  o.learning.clip_given = a.clip->count() > 0;
  o.learning.transform_given = a.transform->count() > 0;
  if (!o.learning.transform_given) {
    o.learning.transform = o.method == "abq" || !faithful || o.scheme.quantizes_activations();
  }
  if (a.aug_loss->count() == 0) {
    const bool weights_alone = !o.scheme.quantizes_activations();
    o.learning.aug_loss = !faithful && weights_alone && o.scheme.weight_bits == 2;
  }
  if (a.first_tokens->count() == 0) {
    o.learning.first_tokens = !faithful && o.scheme.activation_bits < 16;
  }
  if (calibrate::learns(o.method) && !o.learning.clip && !o.learning.transform) {
    throw tool::usage_error("with neither --lwc nor --let there is nothing to learn");
  }
}

/// Shows steps as they are done; begins anew where their number changes.
calibrate::Observer observer_of(const Arguments& a, const char* job,
                                std::unique_ptr<tool::Progress>& progress) {
  struct Shown {
    double done = 0, total = 0;
  };
  const auto shown = std::make_shared<Shown>();
  const bool quiet = a.quiet;
  const auto show = [=, &progress](double done, double total, std::string_view what) {
    if (!progress || total != shown->total) {
      if (progress) progress->finish();
      progress = std::make_unique<tool::Progress>(job, total, tool::Progress::Unit{}, quiet);
      *shown = {0, total};
    }
    progress->advance(done - shown->done, what);
    shown->done = done;
  };
  return {.progress = show, .notice = [quiet](std::string_view t) { tool::notice(quiet, t); }};
}

/// The flags that were given.
std::vector<std::string> given_flags(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() > 0) names.push_back(option->get_name());
  }
  return names;
}

template <class Names>
bool contains(const Names& names, std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

/// --tune-weak reads these, and nothing of quantizing.
void check_tuning_flags(const CLI::App& app) {
  constexpr std::string_view kRead[] = {"MODEL",     "--output", "--text",      "--windows",
                                        "--window",  "--seed",   "--tune-weak", "--tune-lr",
                                        "--threads", "--json",   "--quiet"};
  for (const std::string& flag : given_flags(app)) {
    if (contains(kRead, flag)) continue;
    throw tool::usage_error(flag + " is not for --tune-weak, which takes MODEL as it is");
  }
}

/// Refuses flags that the method does not read (methods/methods.cpp), or not beside the others.
void check_method_flags(const CLI::App& app, const calibrate::Options& o) {
  const calibrate::Learning& l = o.learning;
  const bool learning = o.parameters.empty();
  const struct {
    std::vector<std::string_view> flags;
    bool read;
    const char* where;
  } conditions[] = {
      {{"--windows", "--seed", "--tuning", "--epochs", "--batch-size", "--aug-loss",
        "--first-tokens", "--attention-loss"},
       learning,
       "without --params"},
      {{"--lwc-lr"}, learning && l.clip, "with --lwc and without --params"},
      {{"--let-lr"}, learning && l.transform, "with --let and without --params"},
      {{"--act-scales", "--act-shifts"},
       starts_from_inputs(o),
       "where --let starts from the sizes of inputs: with quantized activations or --faithful, "
       "and without --params"},
      {{"--alpha"},
       o.smooth || starts_from_inputs(o),
       "with --smooth, or where --let starts from the sizes of inputs"},
      {{"--min-scale"}, o.smooth, "with --smooth"},
      {{"--weak-type"},
       o.target_bits > 0 || o.weak_columns > 0,
       "with --target-bits or --weak-columns"},
      {{"--paper-counts"}, o.target_bits > 0, "with --target-bits"}};
  for (const std::string& flag : given_flags(app)) {
    const auto readers = calibrate::readers(flag);
    if (!readers.empty() && !contains(readers, o.method)) {
      throw tool::usage_error(fmt::format("{} is for --method {}, not for {}", flag,
                                          fmt::join(readers, ", "), o.method));
    }
    for (const auto& c : conditions) {
      if (c.read || !contains(c.flags, flag)) continue;
      throw tool::usage_error(fmt::format("{} is read {} only", flag, c.where));
    }
  }
}

void tune(const CLI::App& app, Arguments& a) {
  const calibrate::Options& o = a.options;
  check_tuning_flags(app);
  std::unique_ptr<tool::Progress> progress;
  const calibrate::TuneResult r =
      calibrate::tune_weak(o, a.weak_tuning, observer_of(a, "tuning", progress));
  if (progress) progress->finish();
  if (a.json) {
    return tool::print_object({{"output", o.output.string()},
                               {"loss_before", r.before},
                               {"loss", r.after},
                               {"weights", r.weights},
                               {"bytes", r.bytes}});
  }
  tool::report(a.quiet,
               fmt::format("{}: {} weak weights, {:.1f} MB; loss on the text {:.4f}, before {:.4f}",
                           o.output.string(), r.weights, double(r.bytes) / 1e6, r.after, r.before));
}

void run(const CLI::App& app, Arguments& a) {
  if (a.weak_tuning.steps > 0) return tune(app, a);
  if (a.method->count() == 0 || a.scheme.empty()) {
    throw tool::usage_error("--method and --scheme are required");
  }
  calibrate::Options& o = a.options;
  o.scheme = Scheme::parse(a.scheme);
  const bool searches =
      calibrate::learns(o.method) ? !o.learning.faithful : calibrate::reads(o.method, "--damp");
  const bool mse = a.tuning.empty() ? searches : a.tuning == "mse";
  o.weak_bf16 = a.weak_type == "bf16";
  o.tuning = mse ? calibrate::Tuning::mse : calibrate::Tuning::minmax;
  if (o.method == "smoothquant") o.smooth = true;
  settle_learning(a);
  check_method_flags(app, o);
  if (o.method == "owq" && o.target_bits == 0 && o.weak_columns == 0) {
    throw tool::usage_error("--method owq needs --target-bits or --weak-columns");
  }
  // What cannot be read or written must not come to light after the calibration.
  calibrate::check_places(
      {{"the input", o.input},
       {"the text", calibrate::text_file(o.text)},
       {"the text of --perplexity", a.perplexity}},
      {{"-o", o.output}, {"--save-params", o.save_parameters}, {"--report", a.report}});
  const std::string text = a.perplexity.empty() ? "" : tool::read_text(a.perplexity);
  if (!a.perplexity.empty()) {
    with_place(a.perplexity, [&] { calibrate::check_measurable(o.input, text, o.window); });
  }
  if (!a.report.empty() && !std::ofstream(a.report, std::ios::app)) {
    throw Error({.what = "cannot be written", .where = a.report});
  }
  const auto start = std::chrono::steady_clock::now();
  std::unique_ptr<tool::Progress> progress;
  const calibrate::Result result = calibrate::calibrate(o, observer_of(a, "calibrating", progress));
  if (progress) progress->finish();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  calibrate::Measured measured;
  if (!text.empty()) measured = measure(a, text);
  (a.json ? print_json : print_text)(a, result, measured, took.count());
  if (a.report.empty()) return;
  const ModelConfig config = ModelConfig::load(*File::open(o.input));
  calibrate::write_report(a.report, o, config, result, measured);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Quantizes an f16 model block by block, with calibration text", "oq-calibrate");
  Arguments a;
  calibrate::Options& o = a.options;
  const auto names = calibrate::method_names();
  app.add_option("MODEL", o.input, "an unquantized .oq file")->required();
  app.add_option("-o,--output", o.output, "the .oq file to write")->required();
  a.method = app.add_option("--method", o.method, fmt::format("{}", fmt::join(names, ", ")))
                 ->check(CLI::IsMember(std::vector<std::string>(names.begin(), names.end())));
  app.add_option("--scheme", a.scheme, "what to make, as in w4a16g64, w3a16, w4a8t")
      ->check(CLI::Validator(check_scheme, "SCHEME"));
  app.add_option("--head-bits", o.head_bits, "bits of embedding and head: 4, 6, 8 or 16")
      ->check(CLI::IsMember({4, 6, 8, 16}))
      ->capture_default_str();
  add_text_flags(app, o);
  add_solver_flags(app, a);
  add_learning_flags(app, a);
  app.add_option("--tune-weak", a.weak_tuning.steps,
                 "instead of quantizing: train the weak columns of MODEL, which has some, for so "
                 "many windows, and write them to OUT, for oq-run --weak")
      ->check(CLI::Range(1, 1 << 30));
  app.add_option("--tune-lr", a.weak_tuning.rate, "its learning rate")
      ->needs("--tune-weak")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_flag("--resume", o.resume,
               "go on after the last finished block of a run that was stopped");
  app.add_option("--perplexity", a.perplexity,
                 "a text on which to compare the result with MODEL afterwards, in windows of "
                 "--window tokens");
  app.add_option("--max-windows", a.max_windows, "of that text (0: all)")
      ->needs("--perplexity")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--report", a.report, "write an HTML page about the result");
  tool::add_threads_flag(app, o.threads);
  tool::add_json_flag(app, a.json);
  tool::add_quiet_flag(app, a.quiet);
  return tool::run(app, argc, argv, [&] { run(app, a); });
}
