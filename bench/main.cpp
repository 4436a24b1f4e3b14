#include <algorithm>
#include <chrono>

#include <fmt/format.h>

#include "bench/bandwidth.h"
#include "bench/device_probe.h"
#include "bench/pages.h"
#include "bench/report.h"
#include "bench/synthetic.h"
#include "tools/common/backend.h"
#include "tools/common/cli.h"

namespace {

using namespace oq;

struct Options {
  std::string model, backend = "auto";
  std::string synthetic, scheme;  ///< instead of a model
  int head_bits = 8;
  uint32_t weak_columns = 0;
  int64_t prompt = 512, decode = 128;
  std::vector<int64_t> depths = {0}, batches = {1};
  std::string peer;
  int repetitions = 5, threads = 0;
  int kv_bits = 0;
  Pages pages = Pages::ordinary;
  bool exact = false, json = false, csv = false, quiet = false;
};

/// Refuses what does not say, or says twice, what to measure.
void check_model(const Options& o, const CLI::App& app) {
  if (o.model.empty() == o.synthetic.empty()) {
    throw tool::usage_error("give either a MODEL or --synthetic NAME --scheme S");
  }
  if (o.synthetic.empty()) {
    if (app.count("--scheme") + app.count("--head-bits") + app.count("--weak-columns") == 0) return;
    throw tool::usage_error(
        "--scheme, --head-bits and --weak-columns go with --synthetic: a file has its own");
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

/// The device makes a synthetic model's weights itself: the largest fit there, and need not fit
/// the host. `auto` may come to run on the host.
bool is_hollow(const Options& o) { return !o.synthetic.empty() && o.backend == "cuda"; }

/// A synthetic model's context grows with the tests: its weights have nothing to forget there.
std::shared_ptr<const File> open_model(const Options& o, int64_t context) {
  if (o.synthetic.empty()) return File::open(o.model, o.pages);
  Shape shape = *find_shape(o.synthetic);
  shape.config.context = std::max(shape.config.context, context);
  return make_synthetic(shape, {.scheme = Scheme::parse(o.scheme),
                                .head_bits = o.head_bits,
                                .weak_columns = o.weak_columns,
                                .pages = o.pages,
                                .threads = o.threads,
                                .hollow = is_hollow(o)});
}

std::vector<ThroughputTest> tests_of(const Options& o) {
  std::vector<ThroughputTest> tests;
  for (const int64_t depth : o.depths) {
    if (o.prompt > 0) tests.push_back({.decode = false, .tokens = o.prompt, .depth = depth});
    for (const int64_t batch : o.batches) {
      if (o.decode == 0) continue;
      tests.push_back({.decode = true, .tokens = o.decode, .depth = depth, .batch = batch});
    }
  }
  return tests;
}

/// All of a file's tensors, as they lie.
std::span<const std::byte> tensor_bytes(const File& file) {
  const auto first = file.data(file.tensors().front()), last = file.data(file.tensors().back());
  return {first.data(), last.data() + last.size()};
}

/// Runs the tests beside a probe of the memory that the weights lie in.
void run_tests(const Options& o, const File& file, Decoder& decoder,
               const std::vector<ThroughputTest>& tests, BenchReport& r) {
  const auto run = [&](Probe& probe) {
    r.results = measure_throughput(decoder, tests, o.repetitions, probe, [&] {
      if (r.peer) r.peer->run();
    });
  };
  if (decoder.backend().device_bytes()) {
    auto probe = make_device_probe();
    run(*probe);
    r.device = median(probe->rates());
    probe.reset();  // its buffer is no part of what a decoder takes
    r.device_memory = decoder.backend().device_bytes();
    return;
  }
  BandwidthProbe probe(0, tensor_bytes(file));
  run(probe);
  r.weights_on_huge_pages = huge_page_share(tensor_bytes(file));
  r.huge_pages = median(probe.huge_pages());
  r.small_pages = median(probe.small_pages());
  r.in_place = median(probe.subject());
}

BenchReport measure(const Options& o) {
  const auto start = std::chrono::steady_clock::now();
  const std::vector<ThroughputTest> tests = tests_of(o);
  int64_t context = 0;
  for (const ThroughputTest& t : tests) context = std::max(context, t.depth + t.tokens);
  const auto file = open_model(o, context);
  tool::BackendChoice backend{o.backend, o.threads, o.quiet};
  if (is_hollow(o)) {
    backend.random = [config = ModelConfig::load(*file)](const TensorInfo& t) {
      return synthetic_deviation(config, t);
    };
  }
  Decoder decoder =
      tool::make_decoder(file, backend,
                         {.context = context,
                          .sequences = *std::max_element(o.batches.begin(), o.batches.end()),
                          .exact = o.exact,
                          .kv_bits = o.kv_bits});
  const std::chrono::duration<double> load = std::chrono::steady_clock::now() - start;
  BenchReport r;
  r.model = o.synthetic.empty() ? o.model : o.synthetic;
  r.scheme = file->metadata().get_or<std::string>("scheme", "w16a16");
  r.backend = decoder.backend().description() + (o.exact ? ", exact" : "");
  if (o.pages == Pages::huge) r.backend += ", huge pages";
  if (decoder.kv_bits() != 16) r.backend += ", kv " + std::to_string(decoder.kv_bits());
  r.synthetic = !o.synthetic.empty();
  r.bits_per_weight = linear_bytes(*file, decoder.config()).bits_per_weight();
  r.load_seconds = load.count();
  r.model_bytes = file->bytes();
  r.bytes_per_token = decoder.bytes_per_token();
  if (!o.peer.empty()) r.peer.emplace(o.peer);
  run_tests(o, *file, decoder, tests, r);
  r.peak_memory = tool::peak_memory();
  return r;
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
  app.add_option("--weak-columns", o.weak_columns,
                 "of --synthetic: columns in f16, in each of the blocks' linears")
      ->check(CLI::Range(0, 4096));
  app.add_option("-p,--prompt", o.prompt, "tokens of the prefill test (0: none)")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("-n,--decode", o.decode, "tokens of the decode test (0: none)")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_option("-d,--depth", o.depths, "tokens that every test finds in the cache, as in 0,4096")
      ->delimiter(',')
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("-b,--batch", o.batches, "sequences that the decode test steps together: 1,8")
      ->delimiter(',')
      ->check(CLI::Range(1, 256));
  app.add_option("--peer", o.peer,
                 "a command that prints llama-bench's JSON (or oq-bench's); runs in turn with the "
                 "tests, once a repetition");
  app.add_option("-r,--repetitions", o.repetitions, "runs of each test")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  tool::add_exact_flags(app, o.exact, o.kv_bits);
  tool::add_pages_flag(app, o.pages);
  tool::add_backend_flag(app, o.backend);
  tool::add_threads_flag(app, o.threads);
  tool::add_json_flag(app, o.json);
  app.add_flag("--csv", o.csv, "a line of names and a line per test")->excludes("--json");
  tool::add_quiet_flag(app, o.quiet);

  return tool::run(app, argc, argv, [&] {
    if (o.prompt == 0 && o.decode == 0) throw tool::usage_error("-p 0 -n 0 leaves nothing to do");
    check_model(o, app);
    const BenchReport report = measure(o);
    tool::print(o.json ? to_json(report) : o.csv ? to_csv(report) : to_markdown(report));
  });
}
