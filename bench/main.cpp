#include <chrono>

#include <fmt/format.h>

#include "bench/pages.h"
#include "bench/synthetic.h"
#include "bench/throughput.h"
#include "tools/common/backend.h"
#include "tools/common/json.h"

namespace {

using namespace oq;

struct Options {
  std::string model, backend = "auto";
  std::string synthetic, scheme;  ///< instead of a model
  int head_bits = 8;
  int64_t prompt = 512, decode = 128;
  int repetitions = 5, threads = 0;
  bool exact = false, json = false, quiet = false;
};

struct Report {
  std::string model, scheme, backend;
  bool synthetic;
  double bits_per_weight, load_seconds, peak_mib, bandwidth, huge_pages, small_pages;
  double weights_on_huge_pages;  ///< share of the file's pages; -1: not known
  uint64_t bytes_per_token;
  std::vector<Throughput> results;
};

/// Refuses what does not say, or says twice, what to measure.
void check_model(const Options& o, const CLI::App& app) {
  if (o.model.empty() == o.synthetic.empty()) {
    throw tool::usage_error("give either a MODEL or --synthetic NAME --scheme S");
  }
  if (o.synthetic.empty()) {
    if (app.count("--scheme") + app.count("--head-bits") == 0) return;
    throw tool::usage_error("--scheme and --head-bits go with --synthetic: a file has its own");
  }
  if (find_shape(o.synthetic) == nullptr) {
    throw tool::usage_error("no shape is called '" + o.synthetic + "'; there are " + shape_names());
  }
  if (o.scheme.empty()) throw tool::usage_error("--synthetic needs a --scheme, as w4a16g128");
  try {
    const bool quantizes = Scheme::parse(o.scheme).quantizes_weights();
    if (!quantizes && o.head_bits < 16 && app.count("--head-bits") > 0) {
      throw tool::usage_error("--head-bits needs a --scheme that quantizes weights");
    }
  } catch (const Error& e) {
    throw tool::usage_error(e.what());
  }
}

std::shared_ptr<const File> open_model(const Options& o) {
  if (o.synthetic.empty()) return File::open(o.model);
  return make_synthetic(
      *find_shape(o.synthetic),
      {.scheme = Scheme::parse(o.scheme), .head_bits = o.head_bits, .threads = o.threads});
}

Report measure(const Options& o) {
  const auto start = std::chrono::steady_clock::now();
  const auto file = open_model(o);
  Decoder decoder(file, tool::make_backend(o.backend, o.threads),
                  {.context = std::max(o.prompt, o.decode), .exact = o.exact});
  const std::chrono::duration<double> load = std::chrono::steady_clock::now() - start;
  std::vector<ThroughputTest> tests;
  if (o.prompt > 0) tests.push_back({.decode = false, .tokens = o.prompt});
  if (o.decode > 0) tests.push_back({.decode = true, .tokens = o.decode});
  BandwidthProbe probe;
  Report r{.model = o.synthetic.empty() ? o.model : o.synthetic,
           .scheme = file->metadata().get_or<std::string>("scheme", "w16a16"),
           .backend = decoder.backend().description() + (o.exact ? ", exact" : ""),
           .synthetic = !o.synthetic.empty(),
           .bits_per_weight = linear_bytes(*file, decoder.config()).bits_per_weight(),
           .load_seconds = load.count(),
           .peak_mib = 0,
           .bandwidth = 0,
           .huge_pages = 0,
           .small_pages = 0,
           .weights_on_huge_pages = -1,
           .bytes_per_token = decoder.bytes_per_token(),
           .results = measure_throughput(decoder, tests, o.repetitions, probe)};
  r.peak_mib = double(tool::peak_memory()) / (1 << 20);
  r.weights_on_huge_pages = huge_page_share(file->data(file->tensors().back()));
  r.bandwidth = probe.best();
  r.huge_pages = probe.best_huge_pages();
  r.small_pages = probe.best_small_pages();
  return r;
}

std::string page_note(const Report& r) {
  if (r.weights_on_huge_pages < 0) return "";
  return fmt::format(", {:.0f} % of them on huge pages", r.weights_on_huge_pages * 100);
}

void print_markdown(const Report& r) {
  tool::print(
      "| model | scheme | bits/weight | backend | test | tokens/s | min | max | GB/s | "
      "share of read bandwidth |\n|---|---|---|---|---|---|---|---|---|---|\n");
  for (const Throughput& t : r.results) {
    const std::string gbs = t.test.decode ? fmt::format("{:.1f}", t.bandwidth() / 1e9) : "";
    const std::string share =
        t.test.decode ? fmt::format("{:.2f}", t.bandwidth() / r.bandwidth) : "";
    tool::print(fmt::format("| {} | {} | {:.2f} | {} | {} | {:.1f} | {:.1f} | {:.1f} | {} | {} |\n",
                            r.model, r.scheme, r.bits_per_weight, r.backend, t.test.name(),
                            t.median(), t.rates.front(), t.rates.back(), gbs, share));
  }
  tool::print(fmt::format(
      "\nread bandwidth {:.1f} GB/s (huge pages {:.1f}, small {:.1f}); {:.1f} MB of "
      "weights per token{}; {} in "
      "{:.1f} ms; peak memory with the probe {:.0f} MiB\n",
      r.bandwidth / 1e9, r.huge_pages / 1e9, r.small_pages / 1e9, double(r.bytes_per_token) / 1e6,
      page_note(r), r.synthetic ? "made" : "loaded", r.load_seconds * 1e3, r.peak_mib));
}

void print_json(const Report& r) {
  nlohmann::json results = nlohmann::json::array();
  for (const Throughput& t : r.results) {
    results.push_back({{"test", t.test.name()},
                       {"tokens_per_second", t.median()},
                       {"rates", t.rates},
                       {"bytes_per_token", t.bytes_per_token}});
  }
  tool::print_object({{"model", r.model},
                      {"synthetic", r.synthetic},
                      {"scheme", r.scheme},
                      {"backend", r.backend},
                      {"bits_per_weight", r.bits_per_weight},
                      {"load_seconds", r.load_seconds},
                      {"peak_mib", r.peak_mib},
                      {"read_bandwidth", r.bandwidth},
                      {"weights_on_huge_pages", r.weights_on_huge_pages},
                      {"weight_bytes_per_token", r.bytes_per_token},
                      {"results", results}});
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Measures a model's token throughput beside the machine's read bandwidth",
               "oq-bench");
  Options o;
  app.add_option("MODEL", o.model, "a .oq file");
  app.add_option("--synthetic", o.synthetic,
                 "random weights in memory instead of a file: " + shape_names());
  app.add_option("--scheme", o.scheme, "of --synthetic, as w4a16g128");
  app.add_option("--head-bits", o.head_bits, "of --synthetic: bits of embedding and head")
      ->check(CLI::IsMember({4, 6, 8, 16}))
      ->capture_default_str();
  app.add_option("-p,--prompt", o.prompt, "tokens of the prefill test (0: none)")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("-n,--decode", o.decode, "tokens of the decode test (0: none)")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("-r,--repetitions", o.repetitions, "runs of each test")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_flag("--exact", o.exact, "fp32 activations and KV cache");
  tool::add_backend_flag(app, o.backend);
  tool::add_threads_flag(app, o.threads);
  tool::add_json_flag(app, o.json);
  tool::add_quiet_flag(app, o.quiet);

  return tool::run(app, argc, argv, [&] {
    if (o.prompt == 0 && o.decode == 0) throw tool::usage_error("-p 0 -n 0 leaves nothing to do");
    check_model(o, app);
    const Report report = measure(o);
    if (o.json) {
      print_json(report);
    } else {
      print_markdown(report);
    }
  });
}
