#include "tools/tensor_files/torch/value.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "format/error.h"
#include "tools/tensor_files/torch/printable.h"

namespace oq::torch {
namespace {

constexpr Dtype kDtypes[] = {
    {"F32", "float32", "FloatStorage", 4},
    {"F16", "float16", "HalfStorage", 2},
    {"BF16", "bfloat16", "BFloat16Storage", 2},
    {"F64", "float64", "DoubleStorage", 8},
    {"I64", "int64", "LongStorage", 8},
    {"I32", "int32", "IntStorage", 4},
    {"I16", "int16", "ShortStorage", 2},
    {"I8", "int8", "CharStorage", 1},
    {"U8", "uint8", "ByteStorage", 1},
    {"BOOL", "bool", "BoolStorage", 1},
    {"C64", "complex64", "ComplexFloatStorage", 8},
    {"C128", "complex128", "ComplexDoubleStorage", 16},
    {"U16", "uint16", "", 2},
    {"U32", "uint32", "", 4},
    {"U64", "uint64", "", 8},
    {"F8_E4M3", "float8_e4m3fn", "", 1},
    {"F8_E5M2", "float8_e5m2", "", 1},
    {"F8_E8M0", "float8_e8m0fnu", "", 1},
};

const Dtype* find(std::string_view Dtype::*field, std::string_view name) {
  for (const Dtype& d : kDtypes) {
    if (!name.empty() && d.*field == name) return &d;
  }
  return nullptr;
}

}  // namespace

const Dtype* find_dtype(std::string_view name) { return find(&Dtype::torch, name); }

const Dtype* find_storage_dtype(std::string_view storage_class) {
  return find(&Dtype::storage, storage_class);
}

std::span<const std::byte> Storage::bytes() const {
  if (check_) std::call_once(checked_, check_);
  return bytes_;
}

uint64_t Tensor::elements() const {
  uint64_t n = 1;
  for (uint64_t size : shape) n *= size;
  return n;
}

bool Tensor::contiguous() const {
  if (elements() == 0) return true;
  uint64_t expected = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

std::span<const std::byte> Tensor::place() const {
  if (elements() == 0) return {};
  uint64_t last = 0;
  for (size_t i = 0; i < shape.size(); ++i) last += (shape[i] - 1) * strides[i];
  return storage->place().subspan(offset * dtype->bytes, (last + 1) * dtype->bytes);
}

std::span<const std::byte> Tensor::bytes() const {
  storage->bytes();  // throws where they are not sound
  return place();
}

void Tensor::read(uint64_t first, uint64_t n, std::byte* out) const {
  if (n == 0) return;
  const uint64_t width = dtype->bytes;
  const std::byte* base = storage->bytes().data() + offset * width;
  if (contiguous()) {
    std::memcpy(out, base + first * width, n * width);
    return;
  }
  // Along the last dimension, with an index of the others that counts on.
  const size_t outer = shape.size() - 1;
  const uint64_t cols = shape[outer], step = strides[outer] * width;
  std::vector<uint64_t> index(outer);
  uint64_t row = first / cols, col = first % cols;
  for (size_t i = outer; i-- > 0; row /= shape[i]) index[i] = row % shape[i];
  while (n > 0) {
    uint64_t at = 0;
    for (size_t i = 0; i < outer; ++i) at += index[i] * strides[i];
    const std::byte* from = base + at * width + col * step;
    const uint64_t run = std::min(n, cols - col);
    for (uint64_t i = 0; i < run; ++i, from += step, out += width) std::memcpy(out, from, width);
    n -= run;
    col = 0;
    for (size_t i = outer; i-- > 0;) {
      if (++index[i] < shape[i]) break;
      index[i] = 0;
    }
  }
}

std::string_view Value::kind() const {
  constexpr std::string_view kKinds[] = {"None",
                                         kind_of<bool>(),
                                         kind_of<int64_t>(),
                                         kind_of<double>(),
                                         kind_of<std::string_view>(),
                                         kind_of<Dtype>(),
                                         kind_of<Dict>(),
                                         kind_of<List>(),
                                         kind_of<Tensor>(),
                                         kind_of<Part>()};
  return kKinds[v_.index()];
}

const Value* Dict::find(std::string_view key) const {
  const auto it = index_.find(key);
  return it == index_.end() ? nullptr : &items_[it->second].value;
}

const Value* Dict::find(int64_t key) const {
  const auto it = index_.find(key);
  return it == index_.end() ? nullptr : &items_[it->second].value;
}

bool Dict::add(Value key, Value value) {
  const auto* text = key.as<std::string_view>();
  const bool added = text != nullptr ? index_.emplace(*text, items_.size()).second
                                     : index_.emplace(*key.as<int64_t>(), items_.size()).second;
  if (added) items_.push_back({std::move(key), std::move(value)});
  return added;
}

void Dict::fail(std::string_view key, std::string_view expected, const Value* found) const {
  throw Error({.what = fmt::format("has no usable '{}'", printable(key)),
               .where = *where_,
               .expected = std::string(expected),
               .found = std::string(found == nullptr ? "nothing" : found->kind())});
}

}  // namespace oq::torch
