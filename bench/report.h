#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bench/peer.h"
#include "bench/throughput.h"

namespace oq {

/// Everything that a run of oq-bench found out.
struct BenchReport {
  std::string model, scheme, backend;
  bool synthetic = false;
  double bits_per_weight = 0;             ///< of the blocks' linears, from the bytes stored
  double load_seconds = 0;                ///< to open (or make) the model and set up the decoder
  uint64_t model_bytes = 0;               ///< of the file
  std::optional<uint64_t> device_memory;  ///< that the backend took of a GPU, where it runs on one
  uint64_t peak_memory = 0;  ///< of the host, with the probe's buffers and the mapped file
  /// Bytes per second, medians of the probe's passes: a GPU's memory; or the host's pages of either
  /// kind, and the weights where they lie (0: too few to tell).
  double device = 0, huge_pages = 0, small_pages = 0, in_place = 0;
  double weights_on_huge_pages = -1;  ///< share of the file's pages; -1: not known
  uint64_t bytes_per_token = 0;       ///< of weights
  std::vector<Throughput> results;
  std::optional<Peer> peer;

  double read_bandwidth() const {
    return device_memory ? device : std::max(huge_pages, small_pages);
  }
};

std::string to_markdown(const BenchReport& report);
/// A line of names, then a line per test.
std::string to_csv(const BenchReport& report);
/// One object.
std::string to_json(const BenchReport& report);

}  // namespace oq
