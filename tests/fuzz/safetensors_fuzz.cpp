// Any bytes as a safetensors file.

#include <cstdint>
#include <cstdlib>

#include "format/error.h"
#include "tools/tensor_files/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
  try {
    size_t total = 0;
    for (const auto& t : oq::read_safetensors(bytes, "fuzz.safetensors")) {
      total += t.data.size();
    }
    if (total > size) std::abort();  // tensors overlap
  } catch (const oq::Error&) {
  }
  return 0;
}
