#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace oq {

struct SafeTensor {
  std::string name;
  std::string dtype;            ///< "F32", "BF16", ...
  std::vector<uint64_t> shape;  ///< slowest first; empty for a scalar
  std::span<const std::byte> data;
};

/// What "__metadata__" says.
using SafeMetadata = std::map<std::string, std::string>;

/// The tensors of a safetensors file in memory, in the order of their data. All views point into
/// `bytes`.
///
/// Holds the file to its specification: the header is one JSON object of at most 100 MB, every
/// tensor's bytes are what dtype and shape call for, and together they fill the data without
/// overlap or hole. The header is read as a stream of events, so nothing is kept that the schema
/// does not have; `metadata` takes what the file says of itself. Throws oq::Error naming `where`
/// and the tensor.
std::vector<SafeTensor> read_safetensors(std::span<const std::byte> bytes, const std::string& where,
                                         SafeMetadata* metadata = nullptr);

/// Writes PATH.part, flushes it and renames it over PATH; on failure throws oq::Error, and PATH is
/// as it was. The same tensors and metadata give the same bytes.
void write_safetensors(const std::filesystem::path& path, std::span<const SafeTensor> tensors,
                       const SafeMetadata& metadata);

}  // namespace oq
