#include <algorithm>
#include <cctype>
#include <iostream>
#include <iterator>
#include <vector>

#include <fmt/format.h>

#include "bench/gpu/kernel_bench.h"
#include "bench/gpu/results.h"
#include "bench/gpu/whole_model.h"
#include "kernels/cuda/stream.h"
#include "tools/common/cli.h"

namespace {

using namespace oq;

std::string device_name() {
  std::string why;
  const auto device = cuda::find_device(why);
  if (!device) {
    throw Error({.what = "no CUDA device can be used",
                 .where = "device",
                 .found = why,
                 .hint = "run this on a machine with a GPU"});
  }
  cuda::Stream stream;
  cuda::run_nothing(stream);  // a build without code for this device fails here, not in every row
  stream.synchronize();
  return device->name;
}

/// "nvidia-h100-80gb-hbm3"
std::string file_name(const std::string& device) {
  std::string name;
  for (const char c : device) {
    const bool word = std::isalnum(static_cast<unsigned char>(c)) != 0;
    if (word) name += char(std::tolower(static_cast<unsigned char>(c)));
    if (!word && !name.empty() && name.back() != '-') name += '-';
  }
  return name;
}

std::string standard_input() { return {std::istreambuf_iterator<char>(std::cin), {}}; }

struct Options {
  std::string folder, device, table, key, failure;
  bool has_failed = false;
  ModelAims aims;
  KernelBench::Options kernels;
};

void measure_kernels(Results& results, const KernelBench::Options& options) {
  KernelBench bench(results, options);
  measure_linears(bench);
  measure_integers(bench);
  measure_batches(bench);
  measure_others(bench);
  if (bench.left_out() > 0) {
    tool::notice(false, fmt::format("no time was left for {} rows: call again", bench.left_out()));
  }
}

void put_row(Results& results, const Options& o) {
  if (!o.failure.empty()) return results.put_failure(o.table, o.key, o.failure);
  const auto columns = Results::Json::parse(standard_input(), nullptr, false);
  if (!columns.is_object()) {
    throw Error({.what = "not a JSON object of columns", .where = "standard input"});
  }
  results.put(o.table, o.key, columns);
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Measures a GPU's kernels, and keeps the tables of bench/gpu.sh", "oq-bench-gpu");
  Options o;
  app.require_subcommand(1);
  const auto add = [&](const char* name, const char* what) {
    CLI::App* sub = app.add_subcommand(name, what);
    sub->add_option("--results", o.folder, "folder of results")->required();
    sub->add_option("--device", o.device, "whose results; by default this machine's");
    return sub;
  };
  const auto add_row = [&](const char* name, const char* what) {
    CLI::App* sub = add(name, what);
    sub->add_option("--table", o.table, "of the row")->required();
    sub->add_option("--key", o.key, "of the row")->required();
    return sub;
  };
  const CLI::App* device = app.add_subcommand("device", "print the device's name");
  CLI::App* kernels = add("kernels", "measure kernels, and cuBLAS beside them");
  kernels->add_option("--seconds", o.kernels.seconds, "begin no row after so many")
      ->capture_default_str();
  kernels->add_flag("--skip-failed", o.kernels.skip_failed, "leave rows that failed as they are");
  kernels->add_option("--only", o.kernels.only, "rows that have this text in 'TABLE: KEY'");
  CLI::App* has = add_row("has", "exit with 0 where a row is there and did not fail, else with 1");
  has->add_flag("--failed", o.has_failed, "where it is there and did");
  CLI::App* put = add_row("put", "add a row: a JSON object of columns, from standard input");
  put->add_option("--failed", o.failure, "why there is none");
  CLI::App* model = add_row("model", "add a row: what oq-bench --json printed, on standard input");
  model->add_option("--share", o.aims.share, "of the read bandwidth that decoding is held to");
  model->add_option("--gigabytes", o.aims.gigabytes, "of the device that the model is held to");
  const CLI::App* summary = add("summary", "say what failed; exit with 1 where anything did");
  bool good = true;
  const int code = tool::run(app, argc, argv, [&] {
    if (o.device.empty()) o.device = device_name();
    if (device->parsed()) return tool::print(o.device + "\n");
    Results results(std::filesystem::path(o.folder) / file_name(o.device), o.device);
    if (kernels->parsed()) measure_kernels(results, o.kernels);
    if (has->parsed()) {
      good = o.has_failed ? results.failed(o.table, o.key) : results.has(o.table, o.key);
    }
    if (put->parsed()) put_row(results, o);
    if (model->parsed()) {
      results.put(o.table, o.key, model_columns(standard_input(), o.aims));
    }
    if (summary->parsed()) {
      tool::print(results.summary());
      good = !results.any_failed();
    }
  });
  return code == 0 && !good ? 1 : code;
}
