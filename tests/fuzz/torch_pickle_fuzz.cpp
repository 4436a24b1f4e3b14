// Any bytes as the pickle of a torch file, over storages that are as long as they need be. What
// comes out is walked in full: every node, every string, every element of every tensor.

#include <cstdint>
#include <cstdlib>
#include <vector>

#include "format/error.h"
#include "tools/tensor_files/torch/pickle.h"

using namespace oq::torch;

namespace {

constexpr uint64_t kMaxTensor = 1 << 12;
const std::vector<std::byte> kBytes(256);

std::shared_ptr<const Storage> find_storage(std::string_view key) {
  return std::make_shared<const Storage>(
      key, std::span(kBytes).first(key.empty() ? 0 : uint8_t(key[0])));
}

uint64_t walk(const Value& value, int depth) {
  if (depth > 64) std::abort();
  if (const auto* text = value.as<std::string_view>()) {
    uint64_t sum = 0;
    for (char c : *text) sum += uint8_t(c);
    return sum;
  }
  if (const Tensor* t = value.as<Tensor>()) {
    const uint64_t bytes = t->elements() * t->dtype->bytes;
    if (bytes > kMaxTensor) std::abort();
    std::vector<std::byte> out(bytes);
    t->read(0, t->elements(), out.data());
    if (t->contiguous() && t->bytes().size() != bytes) std::abort();
    return bytes + t->place().size();
  }
  uint64_t nodes = 1;
  if (const Dict* dict = value.as<Dict>()) {
    for (const auto& [key, held] : dict->items()) nodes += walk(held, depth + 1);
  } else if (const List* list = value.as<List>()) {
    for (const Value& held : list->items()) nodes += walk(held, depth + 1);
  }
  return nodes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
    walk(unpickle(bytes, "fuzz.pkl", find_storage, kMaxTensor), 1);
  } catch (const oq::Error&) {
  }
  return 0;
}
