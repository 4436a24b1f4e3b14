// Any bytes as a GGUF file: parsed, every value and every tensor's first and last row read, and its
// tokenizer imported.

#include <cstdint>
#include <string>
#include <vector>

#include "tools/convert/config.h"
#include "tools/convert/gguf.h"
#include "tools/convert/rope.h"
#include "tools/convert/tokenizer_import.h"

using namespace oq;
using namespace oq::convert;

namespace {

template <class Body>
void allow_errors(const Body& body) {
  try {
    body();
  } catch (const Error&) {
  }
}

void read_tensor(const GgufTensor& t) {
  const uint64_t blocks = t.cols() / t.type->block_elements;
  if (t.cols() > 1 << 16) return;  // only time would be lost
  std::vector<float> row(t.cols());
  t.type->dequantize(t.data.data(), blocks, row.data());
  t.type->dequantize(t.data.data() + (t.rows() - 1) * blocks * t.type->block_bytes, blocks,
                     row.data());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  allow_errors([&] {
    const GgufFile file({reinterpret_cast<const std::byte*>(data), size}, "fuzz.gguf");
    for (const GgufTensor& t : file.tensors()) read_tensor(t);
    const GgufConfig config(file);
    for (const char* key : {"general.architecture", "llama.attention.head_count", "tokens"}) {
      allow_errors([&] { config.find(key); });
    }
    allow_errors([&] { gguf_rope(config, "llama", 64, 2048, {}); });
    allow_errors([&] { import_gguf_tokenizer(file); });
  });
  return 0;
}
