#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace oq::convert {

/// How one tensor type of GGUF stores its elements: blocks of `block_elements` in `block_bytes`.
/// The layouts are facts of the format (ggml's type numbers and block structures).
struct GgmlType {
  uint32_t id;              ///< the number in the file
  std::string_view name;    ///< "Q4_K"
  uint32_t block_elements;  ///< a row is a whole number of blocks
  uint32_t block_bytes;
  /// `n` blocks to n * block_elements floats, in single precision and in an order of operations
  /// that gives the same bits as GGUF's Python library. `blocks` need not be aligned.
  void (*dequantize)(const std::byte* blocks, uint64_t n, float* out);
};

/// The type with this number or name, or nullptr where OQ cannot read it. Safetensors calls its
/// floats by the same names.
const GgmlType* find_ggml_type(uint32_t id);
const GgmlType* find_ggml_type(std::string_view name);

/// Every type that OQ reads.
std::span<const GgmlType> ggml_types();

}  // namespace oq::convert
