#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace oq::convert {

struct SafeTensor {
  std::string name;
  std::string dtype;            ///< "F32", "BF16", ...
  std::vector<uint64_t> shape;  ///< slowest first; empty for a scalar
  std::span<const std::byte> data;
};

/// The tensors of a safetensors file in memory, in the order of their data. All views point into
/// `bytes`.
///
/// Holds the file to its specification: the header is one JSON object of at most 100 MB, every
/// tensor's bytes are what dtype and shape call for, and together they fill the data without
/// overlap or hole. The header is read as a stream of events, so nothing is kept that the schema
/// does not have. Throws oq::Error naming `where` and the tensor.
std::vector<SafeTensor> read_safetensors(std::span<const std::byte> bytes,
                                         const std::string& where);

}  // namespace oq::convert
