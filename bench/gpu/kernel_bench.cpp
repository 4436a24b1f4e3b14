#include "bench/gpu/kernel_bench.h"

#include <unistd.h>

#include "bench/device_probe.h"
#include "bench/gpu/timing.h"
#include "bench/throughput.h"
#include "kernels/cuda/kernels.h"

namespace oq {
namespace {

constexpr size_t kCopied = size_t(1) << 30;
constexpr int kCopyBlocks = 4096;
constexpr int kPasses = 15;
constexpr int kEmptyKernels = 200;
constexpr unsigned kRowSeconds = 60;
const std::string kT0 = "an empty kernel in a graph (t0)";

}  // namespace

KernelBench::KernelBench(Results& results, const Options& options)
    : results_(results), options_(options) {
  measure_limits();
}

/// In every run: all shares are of its own, so without them there are no rows.
void KernelBench::measure_limits() {
  const std::string table = "The device's limits";
  attempt(table, "read, 4 GiB", [&]() -> Results::Json {
    const auto probe = make_device_probe();
    for (int i = 0; i < kPasses; ++i) probe->measure();
    bandwidth_ = median(probe->rates());
    return {{"GB/s", bandwidth_ / 1e9}};
  });
  attempt(table, "copy, 1 GiB read and 1 GiB written", [&]() -> Results::Json {
    const cuda::Memory memory(2 * kCopied);
    cuda::clear(stream, memory.data(), memory.bytes());
    const cuda::CopyArgs copy{memory.data(), memory.data() + kCopied, int64_t(kCopied),
                              kCopyBlocks};
    const double time = time_graph(stream, 1, [&](int) { cuda::copy_memory(stream, copy); });
    return {{"GB/s", 2 * double(kCopied) / time / 1e9}};
  });
  attempt(table, kT0, [&]() -> Results::Json {
    t0_ = time_graph(stream, kEmptyKernels, [&](int) { cuda::run_nothing(stream); });
    return {{"us", t0_ * 1e6}};
  });
}

void KernelBench::attempt(const std::string& table, const std::string& key,
                          const std::function<Results::Json()>& measure) {
  results_.put_failure(table, key, "the process ended meanwhile");
  alarm(kRowSeconds);
  try {
    results_.put(table, key, measure());
    alarm(0);
  } catch (const std::exception& e) {
    alarm(0);
    results_.put_failure(table, key, e.what());
    throw;
  }
}

void KernelBench::row(const std::string& table, const std::string& key,
                      const std::function<Results::Json()>& measure) {
  if ((table + ": " + key).find(options_.only) == std::string::npos) return;
  if (results_.has(table, key)) return;
  if (options_.skip_failed && results_.failed(table, key)) return;
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start_;
  if (spent.count() > options_.seconds) {
    ++left_out_;
    return;
  }
  try {
    attempt(table, key, measure);
  } catch (const cuda::DeviceError&) {
    throw;                           // the device may be of no more use to this process
  } catch (const std::exception&) {  // the row says why, and others go on
  }
}

cuda::Memory KernelBench::random_numbers(size_t bytes) {
  cuda::Memory memory(bytes);
  cuda::fill(stream, {.kind = cuda::Fill::halves,
                      .to = memory.as<uint32_t>(),
                      .words = int64_t(bytes / 4),
                      .seed = 7,
                      .mean = 1.5f,
                      .spread = 0.25f});
  return memory;
}

}  // namespace oq
