#include "tools/tensor_files/torch/rebuild.h"

#include <algorithm>

#include <fmt/format.h>

#include "format/bytes.h"
#include "tools/tensor_files/torch/printable.h"

namespace oq::torch {
namespace {

constexpr size_t kMaxRank = 64;
constexpr const char* kHint = "the file is damaged, or not a checkpoint";

struct Global {
  std::string_view module, name;
  Part part;
};
const Global kGlobals[] = {
    {"collections", "OrderedDict", {Part::Id::ordered_dict}},
    {"types", "SimpleNamespace", {Part::Id::name_space}},
    {"torch", "Size", {Part::Id::size}},
    {"torch._utils", "_rebuild_tensor_v2", {Part::Id::rebuild_tensor_v2}},
    {"torch._utils", "_rebuild_tensor_v3", {Part::Id::rebuild_tensor_v3}},
    {"torch._utils", "_rebuild_parameter", {Part::Id::rebuild_parameter}},
    {"torch.storage", "UntypedStorage", {Part::Id::storage_class}},
};

Error wrong(std::string what, std::string expected = {}, std::string found = {}) {
  return Error({.what = std::move(what),
                .expected = std::move(expected),
                .found = std::move(found),
                .hint = kHint});
}

uint64_t number(const Value& v) {
  const auto* n = v.as<int64_t>();
  if (n == nullptr || *n < 0) {
    throw wrong("builds a tensor of wrong sizes", "integers from 0",
                n != nullptr ? std::to_string(*n) : std::string(v.kind()));
  }
  return uint64_t(*n);
}

std::vector<uint64_t> numbers(const Value& v) {
  const List* list = v.as<List>();
  if (list == nullptr || list->items().size() > kMaxRank) {
    throw wrong("builds a tensor of a wrong shape",
                fmt::format("a list of at most {} sizes", kMaxRank), std::string(v.kind()));
  }
  std::vector<uint64_t> out;
  for (const Value& n : list->items()) out.push_back(number(n));
  return out;
}

std::string describe(const Tensor& t) {
  return fmt::format("{} [{}], strides [{}], offset {}", t.dtype->name, fmt::join(t.shape, ", "),
                     fmt::join(t.strides, ", "), t.offset);
}

/// Every element lies in the storage, and all of them are no more than a file could hold.
void check(const Tensor& t, uint64_t max_bytes) {
  if (t.shape.size() != t.strides.size()) {
    throw wrong("builds a tensor of a wrong shape", "as many strides as sizes", describe(t));
  }
  uint64_t bytes = t.dtype->bytes, last = t.offset, way = 0;
  bool sound = true, empty = false;
  for (size_t i = 0; i < t.shape.size(); ++i) {
    empty |= t.shape[i] == 0;
    const uint64_t size = std::max<uint64_t>(t.shape[i], 1);
    sound = sound && checked_mul(bytes, size, bytes) && checked_mul(size - 1, t.strides[i], way) &&
            checked_add(last, way, last);
  }
  const uint64_t elements = t.storage->size() / t.dtype->bytes;
  if (!sound || (!empty && last >= elements)) {
    throw wrong(fmt::format("builds a tensor beyond its storage '{}'", printable(t.storage->key())),
                fmt::format("at most {} elements", elements), describe(t));
  }
  if (!empty && bytes > max_bytes) {
    throw wrong("builds a tensor that is larger than its file",
                fmt::format("at most {} bytes", max_bytes), describe(t));
  }
}

}  // namespace

std::optional<Value> find_global(std::string_view module, std::string_view name) {
  for (const Global& g : kGlobals) {  // the table outlives every value: nothing owns its parts
    if (g.module == module && g.name == name) {
      return Value(std::shared_ptr<const Part>(std::shared_ptr<void>(), &g.part));
    }
  }
  if (module != "torch") return std::nullopt;
  if (const Dtype* dtype = find_dtype(name)) return Value(dtype);
  if (const Dtype* dtype = find_storage_dtype(name)) {
    return Value(std::make_shared<const Part>(Part{Part::Id::storage_class, dtype}));
  }
  return std::nullopt;
}

Value load_storage(const Value& id, const FindStorage& find_storage) {
  const List* list = id.as<List>();
  const auto items = list != nullptr ? list->items() : std::span<const Value>();
  const auto refused = [] {
    return wrong("refers to something outside the pickle that is no storage",
                 "('storage', class, key, device, elements)");
  };
  if (items.size() != 5) throw refused();
  const auto *tag = items[0].as<std::string_view>(), *key = items[2].as<std::string_view>();
  const Part* type = items[1].as<Part>();
  const auto* count = items[4].as<int64_t>();
  if (tag == nullptr || *tag != "storage" || key == nullptr || type == nullptr ||
      type->id != Part::Id::storage_class || count == nullptr || *count < 0) {
    throw refused();
  }
  auto storage = find_storage(*key);
  const uint64_t width = type->dtype != nullptr ? type->dtype->bytes : 1;
  uint64_t bytes = 0;
  if (!checked_mul(uint64_t(*count), width, bytes) || storage->size() != bytes) {
    throw wrong(fmt::format("disagrees with storage '{}' about its size", printable(*key)),
                fmt::format("{} elements of {} bytes", *count, width),
                fmt::format("{} bytes", storage->size()));
  }
  return Value(
      std::make_shared<const Part>(Part{Part::Id::storage, type->dtype, std::move(storage)}));
}

Value rebuild_tensor(Part::Id version, std::span<const Value> args, uint64_t max_tensor_bytes) {
  const bool v3 = version == Part::Id::rebuild_tensor_v3;
  const size_t known = v3 ? 7 : 6;  // before the metadata
  const Part* part = args.empty() ? nullptr : args[0].as<Part>();
  if (args.size() < known || args.size() > known + 1 || part == nullptr ||
      part->storage == nullptr) {
    throw wrong("builds a tensor of wrong arguments");
  }
  if (args.size() > known && !args[known].none()) {  // conjugate and negative views
    const Dict* metadata = args[known].as<Dict>();
    if (metadata == nullptr || !metadata->items().empty()) {
      throw wrong("builds a tensor whose values are not those of its storage");
    }
  }
  auto tensor = std::make_shared<Tensor>();
  tensor->dtype = v3 ? args[6].as<Dtype>() : part->dtype;
  if (tensor->dtype == nullptr) throw wrong("builds a tensor without a dtype");
  tensor->storage = part->storage;
  tensor->offset = number(args[1]);
  tensor->shape = numbers(args[2]);
  tensor->strides = numbers(args[3]);
  check(*tensor, max_tensor_bytes);
  return Value(std::shared_ptr<const Tensor>(std::move(tensor)));
}

}  // namespace oq::torch
