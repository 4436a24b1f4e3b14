#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "tools/calibrate/methods/method.h"
#include "tools/calibrate/options.h"
#include "tools/common/cli.h"

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
  std::string scheme, tuning;
  bool json = false, quiet = false;
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
  auto* target = app.add_option("--target-bits", o.target_bits,
                                "owq: bits per weight with weak columns counted, as in 3.01");
  target->check(CLI::Range(2.0, 16.0));
  app.add_option("--weak-columns", o.weak_columns, "owq: weak columns per linear, instead")
      ->check(CLI::Range(0, 1 << 20))
      ->excludes(target);
  app.add_option("--layers", o.layers, "owq: linears that may have weak columns, as in q,k,down")
      ->delimiter(',');
  app.add_flag("--paper-counts", o.paper_counts, "owq: count columns by the paper's own formula");
  app.add_option("--tuning", a.tuning, "how scales are chosen; owq's default is mse, else minmax")
      ->check(CLI::IsMember({"mse", "minmax"}));
  app.add_flag("--act-order", o.act_order, "visit sensitive columns first");
  app.add_flag("--static-groups", o.static_groups, "choose groups' scales before any feedback");
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

void print_result(const Arguments& a, const calibrate::Result& r) {
  const calibrate::Options& o = a.options;
  if (!a.json) {
    tool::report(a.quiet, fmt::format("{}: {:.3f} bits per weight, {:.1f} MB", o.output.string(),
                                      r.bits_per_weight, double(r.bytes) / 1e6));
    return;
  }
  auto linears = nlohmann::json::array();
  for (const calibrate::LinearReport& l : r.linears) {
    linears.push_back({{"name", l.name},
                       {"output_error", l.output_error},
                       {"weight_error", l.weight_error},
                       {"bits", l.bits},
                       {"weak_columns", l.weak_columns},
                       {"damp", l.damp}});
  }
  tool::print(nlohmann::json{{"output", o.output.string()},
                             {"method", o.method},
                             {"scheme", o.scheme.str()},
                             {"bits_per_weight", r.bits_per_weight},
                             {"bytes", r.bytes},
                             {"linears", linears}}
                  .dump() +
              "\n");
}

void run(Arguments& a) {
  calibrate::Options& o = a.options;
  o.scheme = Scheme::parse(a.scheme);
  const bool mse = a.tuning.empty() ? o.method == "owq" : a.tuning == "mse";
  o.tuning = mse ? calibrate::Tuning::mse : calibrate::Tuning::minmax;
  if (o.method == "smoothquant") o.smooth = true;
  if (o.method == "owq" && o.target_bits == 0 && o.weak_columns == 0) {
    throw tool::usage_error("--method owq needs --target-bits or --weak-columns");
  }
  if (o.method != "owq" && (o.target_bits > 0 || o.weak_columns > 0)) {
    throw tool::usage_error("--target-bits and --weak-columns are for --method owq");
  }
  std::unique_ptr<tool::Progress> progress;
  double shown = 0, total_shown = 0;
  const auto show = [&](double done, double total, std::string_view what) {
    if (!progress || total != total_shown) {
      if (progress) progress->finish();
      progress = std::make_unique<tool::Progress>("calibrating", total,
                                                  tool::Progress::Unit{"/s", 1}, a.quiet);
      shown = 0;
      total_shown = total;
    }
    progress->advance(done - shown, what);
    shown = done;
  };
  const calibrate::Result result = calibrate::calibrate(
      o, {.progress = show, .notice = [&](std::string_view t) { tool::notice(a.quiet, t); }});
  if (progress) progress->finish();
  print_result(a, result);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Quantizes an f16 model block by block, with calibration text", "oq-calibrate");
  Arguments a;
  calibrate::Options& o = a.options;
  const auto names = calibrate::method_names();
  app.add_option("MODEL", o.input, "an unquantized .oq file")->required();
  app.add_option("-o,--output", o.output, "the .oq file to write")->required();
  app.add_option("--method", o.method, fmt::format("{}", fmt::join(names, ", ")))
      ->check(CLI::IsMember(std::vector<std::string>(names.begin(), names.end())))
      ->required();
  app.add_option("--scheme", a.scheme, "what to make, as in w4a16g64, w3a16, w4a8t")
      ->check(CLI::Validator(check_scheme, "SCHEME"))
      ->required();
  app.add_option("--head-bits", o.head_bits, "bits of embedding and head: 4, 6, 8 or 16")
      ->check(CLI::IsMember({4, 6, 8, 16}))
      ->capture_default_str();
  add_text_flags(app, o);
  add_solver_flags(app, a);
  app.add_flag("--resume", o.resume,
               "go on after the last finished block of a run that was stopped");
  app.add_option("--report", o.report, "write an HTML page about the result");
  tool::add_threads_flag(app, o.threads);
  tool::add_json_flag(app, a.json);
  tool::add_quiet_flag(app, a.quiet);
  return tool::run(app, argc, argv, [&] { run(a); });
}
