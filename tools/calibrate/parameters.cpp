#include "tools/calibrate/parameters.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>

#include "format/half.h"
#include "tools/calibrate/omniquant_files.h"
#include "tools/tensor_files/mapped_file.h"
#include "tools/tensor_files/safetensors.h"

namespace oq::calibrate {
namespace {

constexpr const char* kFormat = "oq-parameters 1";

/// "blocks.3.q.upper" is "q.upper" of block 3.
struct Place {
  int64_t block = -1;
  std::string_view name;

  explicit Place(std::string_view full) {
    constexpr std::string_view kPrefix = "blocks.";
    if (full.substr(0, kPrefix.size()) != kPrefix) return;
    full.remove_prefix(kPrefix.size());
    int64_t number = 0;
    const auto [end, error] = std::from_chars(full.data(), full.data() + full.size(), number);
    const auto digits = size_t(end - full.data());
    if (error != std::errc() || digits + 1 >= full.size() || full[digits] != '.') return;
    block = number;
    name = full.substr(digits + 1);
  }
};

Matrix matrix_of(const SafeTensor& t) {
  if (t.dtype != "F32" || t.shape.size() != 2) {
    throw Error({.what = "is no matrix of learned parameters",
                 .expected = "F32 of two dimensions",
                 .found = fmt::format("{} of {}", t.dtype, t.shape.size())});
  }
  std::vector<float> values(t.data.size() / sizeof(float));
  std::memcpy(values.data(), t.data.data(), t.data.size());
  return {int64_t(t.shape[0]), int64_t(t.shape[1]), std::move(values)};
}

Parameters read_own(const std::filesystem::path& path, const ModelConfig& config) {
  const MappedFile map(path);
  Parameters p;
  const auto tensors = read_safetensors(map.bytes(), path.string(), &p.metadata);
  const auto format = p.metadata.find("format");
  if (format == p.metadata.end() || format->second != kFormat) {
    throw Error({.what = "is no file of learned parameters",
                 .where = path.string(),
                 .expected = kFormat,
                 .found = format == p.metadata.end() ? "no format in its metadata" : format->second,
                 .hint = "make one with --save-params"});
  }
  p.blocks.resize(size_t(config.blocks));
  for (const SafeTensor& t : tensors) {
    const Place place(t.name);
    if (place.block < 0 || place.block >= config.blocks) {
      throw Error({.what = fmt::format("'{}' is of no block of this model", t.name),
                   .where = path.string(),
                   .expected = fmt::format("blocks.0 to blocks.{}", config.blocks - 1)});
    }
    p.blocks[size_t(place.block)].emplace(
        place.name, with_place(fmt::format("{}, tensor '{}'", path.string(), t.name),
                               [&] { return matrix_of(t); }));
  }
  return p;
}

}  // namespace

Parameters read_parameters(const std::filesystem::path& path, const ModelConfig& config) {
  const bool own = path.extension() == kParametersExtension;
  Parameters p =
      own ? read_own(path, config) : Parameters{{}, read_omniquant_parameters(path, config)};
  for (size_t b = 0; b < p.blocks.size(); ++b) {
    if (p.blocks[b].empty()) {
      throw Error({.what = fmt::format("has no parameters of block {}", b),
                   .where = path.string(),
                   .expected = fmt::format("{} blocks", config.blocks),
                   .hint = "they are of another model, or of a run that was stopped"});
    }
    for (const auto& [name, matrix] : p.blocks[b]) {
      check_finite(matrix, fmt::format("{}, blocks.{}.{}", path.string(), b, name));
    }
  }
  return p;
}

void write_parameters(const std::filesystem::path& path, const Parameters& parameters) {
  std::vector<SafeTensor> tensors;
  for (size_t b = 0; b < parameters.blocks.size(); ++b) {
    for (const auto& [name, m] : parameters.blocks[b]) {
      tensors.push_back({.name = fmt::format("blocks.{}.{}", b, name),
                         .dtype = "F32",
                         .shape = {uint64_t(m.rows()), uint64_t(m.cols())},
                         .data = std::as_bytes(m.values())});
    }
  }
  auto metadata = parameters.metadata;
  metadata["format"] = kFormat;
  write_safetensors(path, tensors, metadata);
}

}  // namespace oq::calibrate
