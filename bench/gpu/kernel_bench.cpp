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

}  // namespace

KernelBench::KernelBench(Results& results, const Options& options)
    : results_(results), options_(options) {
  measure_limits();
}

/// In every run: all shares are of its own.
void KernelBench::measure_limits() {
  const std::string table = "The device's limits";
  {
    const auto probe = make_device_probe();
    for (int i = 0; i < kPasses; ++i) probe->measure();
    bandwidth_ = median(probe->rates());
  }
  results_.put(table, "read, 4 GiB", {{"GB/s", bandwidth_ / 1e9}});
  {
    const cuda::Memory memory(2 * kCopied);
    cuda::clear(stream, memory.data(), memory.bytes());
    const cuda::CopyArgs copy{memory.data(), memory.data() + kCopied, int64_t(kCopied),
                              kCopyBlocks};
    const double time = time_graph(stream, 1, [&](int) { cuda::copy_memory(stream, copy); });
    results_.put(table, "copy, 1 GiB read and 1 GiB written",
                 {{"GB/s", 2 * double(kCopied) / time / 1e9}});
  }
  t0_ = time_graph(stream, kEmptyKernels, [&](int) { cuda::run_nothing(stream); });
  results_.put(table, "an empty kernel in a graph (t0)", {{"us", t0_ * 1e6}});
}

void KernelBench::row(const std::string& table, const std::string& key,
                      const std::function<Results::Json()>& measure) {
  if (results_.has(table, key)) return;
  if (options_.skip_failed && results_.failed(table, key)) return;
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start_;
  if (spent.count() > options_.seconds) {
    ++left_out_;
    return;
  }
  results_.put_failure(table, key, "the process ended meanwhile");
  alarm(kRowSeconds);
  try {
    results_.put(table, key, measure());
  } catch (const cuda::DeviceError& e) {
    alarm(0);
    results_.put_failure(table, key, e.what());
    throw;
  } catch (const std::exception& e) {
    results_.put_failure(table, key, e.what());
  }
  alarm(0);
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
