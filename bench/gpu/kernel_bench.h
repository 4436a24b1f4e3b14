#pragma once

#include <chrono>
#include <functional>
#include <string>

#include "bench/gpu/cublas.h"
#include "bench/gpu/results.h"
#include "kernels/cuda/stream.h"
#include "runtime/backend/cuda/weight.h"

namespace oq {

/// What the rows of a run of kernels share: the table they go to, the time there is, the device's
/// limits, measured first, and cuBLAS beside them.
class KernelBench {
 public:
  struct Options {
    double seconds = 500;      ///< after which no row is begun
    bool skip_failed = false;  ///< rows that failed before are left as they are
    std::string only;          ///< text that "TABLE: KEY" of a row must have; empty: all rows
  };
  KernelBench(Results& results, const Options& options);

  /// Measures a row, unless it is there or time is over. Where `measure` throws, the row says why;
  /// a DeviceError goes on from here, for the device may be of no more use to this process. A row
  /// that takes a minute ends the process (SIGALRM), and it says that.
  void row(const std::string& table, const std::string& key,
           const std::function<Results::Json()>& measure);

  /// Rows that time was too short for.
  int left_out() const { return left_out_; }

  /// Bytes per second, read; seconds of an empty kernel in a graph.
  double bandwidth() const { return bandwidth_; }
  double t0() const { return t0_; }
  /// Seconds of a kernel that reads `bytes` at a share of the bandwidth.
  double limit(double bytes, double share = 1) const { return t0_ + bytes / (share * bandwidth_); }

  /// Floats between 0.03 and 0.5, and f16 numbers between 1.25 and 1.75, whichever they are taken
  /// for. `bytes`: a multiple of 4.
  cuda::Memory random_numbers(size_t bytes);

  cuda::Stream stream;
  CudaUploader uploader{stream};
  Cublas cublas{stream};

 private:
  void measure_limits();
  /// Measures, by rules that `row` and the limits share, and throws what `measure` throws.
  void attempt(const std::string& table, const std::string& key,
               const std::function<Results::Json()>& measure);

  Results& results_;
  Options options_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  double bandwidth_ = 0, t0_ = 0;
  int left_out_ = 0;
};

// The tables, one for each question.

/// Decode's linears at 1 to 8 tokens, of every width, with weak columns: beside the bandwidth and
/// cuBLAS in fp16.
void measure_linears(KernelBench& bench);
/// Linears on codes of activations at ABQ's shapes, by its protocol and by ours, beside int8.
void measure_integers(KernelBench& bench);
/// A block's linears at 16 to 2048 tokens, by both engines, beside cuBLAS in fp16.
void measure_batches(KernelBench& bench);
/// Attention, norm, ranking: what stands around linears.
void measure_others(KernelBench& bench);

}  // namespace oq
