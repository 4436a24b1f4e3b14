#include "runtime/backend/cuda/engine_tuner.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <span>
#include <system_error>

#include <fmt/format.h>
#include <unistd.h>

#include "format/crc32c.h"
#include "format/error.h"

namespace oq {
namespace {

/// Goes up when kernels change so much that old choices mean nothing.
constexpr int kRevision = 2;
constexpr std::string_view kNames[] = {"bytes", "planes"};  ///< in the order of Engine

std::optional<cuda::Engine> engine_of(std::string_view name) {
  for (size_t i = 0; i < std::size(kNames); ++i) {
    if (kNames[i] == name) return cuda::Engine(i);
  }
  return std::nullopt;
}

/// "bytes", or "bytes-fused".
constexpr std::string_view kFused = "-fused";

std::string text_of(EngineChoice c) {
  return std::string(kNames[size_t(c.engine)]) + std::string(c.fused ? kFused : "");
}

std::optional<EngineChoice> choice_of(std::string_view text) {
  const bool fused = text.ends_with(kFused);
  if (fused) text.remove_suffix(kFused.size());
  const auto engine = engine_of(text);
  if (!engine) return std::nullopt;
  return EngineChoice{*engine, fused};
}

std::string_view environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// What choices hold for: the first line of a cache.
std::string header(const cuda::DeviceInfo& d) {
  return fmt::format("oq cuda engines {}, {}, sm_{}{}, {} SMs, driver {}, toolkit {}", kRevision,
                     d.name, d.major, d.minor, d.processors, d.driver, d.toolkit);
}

/// A file for each device and build: a home that machines share has several.
std::filesystem::path users_cache(const cuda::DeviceInfo& d) {
  const std::string_view caches = environment("XDG_CACHE_HOME"), home = environment("HOME");
  const std::string text = header(d);
  const auto name =
      fmt::format("oq/cuda-engines-{:08x}.txt", crc32c(std::as_bytes(std::span(text))));
  if (caches.starts_with('/')) return std::filesystem::path(caches) / name;
  if (home.starts_with('/')) return std::filesystem::path(home) / ".cache" / name;
  return {};
}

std::string checksum(std::string_view text) {
  return fmt::format("crc32c {:08x}", crc32c(std::as_bytes(std::span(text))));
}

using Choices = std::map<std::string, EngineChoice, std::less<>>;

/// Lines "key choice" between the first line and the last, the checksum of all before it. Nothing
/// where it is not whole.
std::optional<Choices> parse(std::string_view text) {
  if (!text.ends_with('\n')) return std::nullopt;
  const size_t last = text.rfind('\n', text.size() - 2);
  if (last == text.npos) return std::nullopt;
  const std::string_view body = text.substr(0, last + 1);
  if (text.substr(last + 1) != checksum(body) + "\n") return std::nullopt;
  Choices choices;
  for (size_t at = body.find('\n') + 1; at < body.size();) {
    const size_t end = body.find('\n', at), space = body.find(' ', at);
    if (space >= end) return std::nullopt;
    const auto choice = choice_of(body.substr(space + 1, end - space - 1));
    if (!choice) return std::nullopt;
    choices.emplace(body.substr(at, space - at), *choice);
    at = end + 1;
  }
  return choices;
}

}  // namespace

EngineShape EngineShape::of(const cuda::PackedArgs& args) {
  const cuda::PackedMatrix& first = args.linears[0].matrix;
  EngineShape s{.bits = args.in.bits,
                .weight_bits = first.field_bits,
                .five_levels = first.five_levels,
                .group = first.groups == 1 ? 0 : first.group,
                .rows = 0,
                .cols = first.cols,
                .tokens = args.in.tokens,
                .experts = args.experts != nullptr};
  for (int l = 0; l < args.count; ++l) s.rows += args.linears[l].matrix.rows;
  return s;
}

std::string EngineShape::key() const {
  int batch = tokens;
  if (tokens > cuda::kMaxTokens) {
    for (batch = 2 * cuda::kMaxTokens; batch < tokens;) batch *= 2;
  }
  return fmt::format("w{}a{}g{}:{}x{}:{}{}", five_levels ? "2*" : std::to_string(weight_bits), bits,
                     group, rows, cols, batch, experts ? ":experts" : "");
}

EngineTuner::EngineTuner(const cuda::DeviceInfo& device, std::string_view forced,
                         const std::filesystem::path& cache)
    : device_(device), cache_(cache) {
  if (!forced.empty()) {
    forced_ = engine_of(forced);
    if (!forced_) {
      throw Error({.what = "no engine for integer activations has this name",
                   .where = "environment variable OQ_CUDA_ENGINE",
                   .expected = "bytes or planes",
                   .found = std::string(forced),
                   .hint = "unset OQ_CUDA_ENGINE"});
    }
    if (forced_ == cuda::Engine::planes && device.major < 8) {
      throw Error({.what = "this device has no instruction for bit planes",
                   .where = "environment variable OQ_CUDA_ENGINE",
                   .expected = "compute capability 8.0 or later",
                   .found = fmt::format("{}.{}", device.major, device.minor),
                   .hint = "unset OQ_CUDA_ENGINE"});
    }
  }
  read();
}

EngineTuner::EngineTuner(const cuda::DeviceInfo& device)
    : EngineTuner(device, environment("OQ_CUDA_ENGINE"), users_cache(device)) {}

cuda::Engine EngineTuner::by_rule(const cuda::DeviceInfo& device, const EngineShape& s) {
  constexpr int kOfBytes = 8;  // of a strip: 4 of codes, 4 that sum up weights
  const int tokens = std::min(s.tokens, cuda::kMaxTokens);
  const int of_x = (tokens * cuda::activation_planes(s.bits) + 7) / 8 + 1;
  const int planes = (s.five_levels ? 3 : s.weight_bits) * of_x;
  return device.has_bit_planes() && planes < kOfBytes ? cuda::Engine::planes : cuda::Engine::bytes;
}

std::optional<EngineChoice> EngineTuner::fastest(bool can_fuse, const Measure& measure) const {
  std::optional<EngineChoice> best;
  double least = 0;
  // Thrown away: clocks rise with work, and would favour whoever comes last.
  if (!measure({cuda::Engine::bytes, can_fuse})) return std::nullopt;
  for (const cuda::Engine engine : {cuda::Engine::bytes, cuda::Engine::planes}) {
    if (engine == cuda::Engine::planes && !device_.has_bit_planes()) continue;
    for (const bool fused : {false, true}) {
      if (fused && !can_fuse) continue;
      const auto time = measure({engine, fused});
      if (!time) return std::nullopt;
      if (best && *time >= least) continue;
      best = {engine, fused};
      least = *time;
    }
  }
  return best;
}

EngineChoice EngineTuner::choose(const EngineShape& shape, bool can_fuse, const Measure& measure) {
  if (forced_) return {*forced_, can_fuse};
  const std::string key = shape.key();
  const auto known = chosen_.find(key);
  if (known != chosen_.end()) return {known->second.engine, known->second.fused && can_fuse};
  if (unmeasured_.count(key) == 0) {
    if (const auto best = fastest(can_fuse, measure)) {
      chosen_.emplace(key, *best);
      write();
      return *best;
    }
    unmeasured_.insert(key);
  }
  return {by_rule(device_, shape), can_fuse};
}

void EngineTuner::read() {
  if (forced_ || cache_.empty()) return;
  std::ifstream in(cache_, std::ios::binary);
  if (!in) return;
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  auto choices = parse(text);
  if (!choices) {
    notice_ = fmt::format("{} is damaged: engines are measured again", cache_.string());
  } else if (text.starts_with(header(device_) + "\n")) {
    chosen_.merge(*choices);  // what this run has chosen stays
  }
}

/// Beside the file and then in its place, so that nobody reads half of one. Without a cache all is
/// slower, and no worse: errors are none.
void EngineTuner::write() {
  if (cache_.empty()) return;
  read();  // what others have found since
  std::string text = header(device_) + "\n";
  for (const auto& entry : chosen_) {
    text += fmt::format("{} {}\n", entry.first, text_of(entry.second));
  }
  text += checksum(text) + "\n";
  std::error_code ignored;
  std::filesystem::create_directories(cache_.parent_path(), ignored);
  const std::filesystem::path part = fmt::format("{}.{}", cache_.string(), getpid());
  {
    std::ofstream out(part, std::ios::binary);
    out << text;
    if (!out.flush()) ignored = std::make_error_code(std::errc::io_error);
  }
  if (!ignored) std::filesystem::rename(part, cache_, ignored);
  if (ignored) std::filesystem::remove(part, ignored);
}

}  // namespace oq
