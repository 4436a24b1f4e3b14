#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "kernels/cuda/integer.h"

namespace oq {

/// What a choice between the engines may depend on, beside the device.
struct EngineShape {
  int bits;         ///< of x
  int weight_bits;  ///< of fields; 7 with five levels
  bool five_levels;
  int group, rows, cols;  ///< rows of all linears of the call
  int tokens;
  bool experts;

  static EngineShape of(const cuda::PackedArgs& args);
  /// One word, in which batches of more than 8 tokens count as the next power of two.
  std::string key() const;
};

/// How a call runs.
struct EngineChoice {
  cuda::Engine engine;
  bool fused;  ///< quantization in the linear's own launch

  friend bool operator==(const EngineChoice&, const EngineChoice&) = default;
};

/// Chooses an engine for each shape, and whether to fuse. Where the device can be timed the faster
/// one, found once and kept in a file; elsewhere by rule, so that results are the same on every
/// run. One thread.
class EngineTuner {
 public:
  /// Microseconds that a call takes on the device; nothing where that cannot be measured.
  using Measure = std::function<std::optional<double>(EngineChoice)>;

  /// `forced` is "bytes" or "planes", which fuses where it can, or empty. `cache`: where choices
  /// are kept; empty: nowhere. A cache that is damaged or of another device or version is not used,
  /// and written anew. Throws oq::Error on another `forced`.
  EngineTuner(const cuda::DeviceInfo& device, std::string_view forced,
              const std::filesystem::path& cache);
  /// With environment variable OQ_CUDA_ENGINE, and oq/cuda-engines-<checksum of device and
  /// versions>.txt in the user's folder for caches: $XDG_CACHE_HOME, or $HOME/.cache.
  explicit EngineTuner(const cuda::DeviceInfo& device);

  /// Asks once for each shape, even where nothing could be measured: the next time a step may be
  /// recorded. Fuses only where that is possible.
  EngineChoice choose(const EngineShape& shape, bool can_fuse, const Measure& measure);

  /// What has to be said of the cache, or empty.
  const std::string& notice() const { return notice_; }

  /// Planes where the device multiplies bits itself and a strip takes them fewer mma than bytes.
  static cuda::Engine by_rule(const cuda::DeviceInfo& device, const EngineShape& shape);

 private:
  std::optional<EngineChoice> fastest(bool can_fuse, const Measure& measure) const;
  void read();
  void write();

  cuda::DeviceInfo device_;
  std::optional<cuda::Engine> forced_;
  std::filesystem::path cache_;
  std::map<std::string, EngineChoice, std::less<>> chosen_;
  std::set<std::string, std::less<>> unmeasured_;  ///< of this run: a rule has chosen
  std::string notice_;
};

}  // namespace oq
