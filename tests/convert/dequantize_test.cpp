// Dequantization of GGUF's tensor types against its own Python library, bit for bit.

#include <cstring>
#include <map>

#include <doctest/doctest.h>

#include "tests/support.h"
#include "tools/convert/gguf.h"
#include "tools/tensor_files/mapped_file.h"
#include "tools/tensor_files/safetensors.h"

using namespace oq;
using namespace oq::convert;

namespace {

std::vector<float> dequantize(const GgmlType& type, std::span<const std::byte> data) {
  const size_t blocks = data.size() / type.block_bytes;
  std::vector<float> out(blocks * type.block_elements);
  type.dequantize(data.data(), blocks, out.data());
  return out;
}

/// Index of the first float that differs in any bit, or -1.
ptrdiff_t first_difference(std::span<const float> a, std::span<const std::byte> b) {
  if (a.size_bytes() != b.size()) return 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], b.data() + 4 * i, 4) != 0) return ptrdiff_t(i);
  }
  return -1;
}

}  // namespace

TEST_CASE("random blocks of every type equal the Python library's values") {
  const MappedFile file(test::golden("ggml_blocks.safetensors"));
  std::map<std::string, SafeTensor> tensors;
  for (SafeTensor& t : read_safetensors(file.bytes(), "blocks")) tensors[t.name] = t;
  size_t types = 0;
  for (const GgmlType& type : ggml_types()) {
    if (type.name == "F32") continue;
    CAPTURE(type.name);
    REQUIRE(tensors.count(std::string(type.name) + ".blocks") == 1);
    const auto values = dequantize(type, tensors[std::string(type.name) + ".blocks"].data);
    CHECK(first_difference(values, tensors[std::string(type.name) + ".values"].data) == -1);
    ++types;
  }
  CHECK(types == 12);
}

TEST_SUITE("data") {
  TEST_CASE("every golden GGUF equals its dequantized tensors") {
    const auto folder = test::data("golden/gguf");
    if (!folder) return;
    size_t compared = 0;
    for (const auto& entry : std::filesystem::directory_iterator(*folder)) {
      if (entry.path().extension() != ".gguf") continue;
      auto golden = entry.path();
      golden.replace_extension(".safetensors");
      CAPTURE(entry.path().string());
      REQUIRE(std::filesystem::exists(golden));
      const MappedFile file(entry.path()), expected(golden);
      const GgufFile gguf(file.bytes(), entry.path());
      for (const SafeTensor& t : read_safetensors(expected.bytes(), golden)) {
        CAPTURE(t.name);
        const GgufTensor* source = gguf.find(t.name);
        REQUIRE(source != nullptr);
        CHECK(source->cols() == t.shape.back());
        CHECK(first_difference(dequantize(*source->type, source->data), t.data) == -1);
        ++compared;
      }
    }
    CHECK(compared > 0);
  }
}
