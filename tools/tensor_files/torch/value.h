#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

/// What a file of torch.save holds: a tree of dicts, lists, scalars and tensors.
///
/// Everything is immutable once unpickled; any number of threads may read. Strings and tensors are
/// views into the file's bytes, which must outlive them (torch::File keeps them mapped).
namespace oq::torch {

/// An element type of torch.
struct Dtype {
  std::string_view name;     ///< as safetensors calls it: "F16", "I32", "BOOL"
  std::string_view torch;    ///< as torch does: "float16", "int32", "bool"
  std::string_view storage;  ///< class of its storages: "HalfStorage"; empty: only untyped ones
  uint64_t bytes;
};

/// The dtype of torch.NAME, or the one that storages of a class hold; nullptr where there is none.
const Dtype* find_dtype(std::string_view name);
const Dtype* find_storage_dtype(std::string_view storage_class);

/// Bytes that tensors share, under a checksum.
class Storage {
 public:
  /// `check` throws where the bytes are not what was saved. It is called when they are first asked
  /// for, not before: whoever converts a checkpoint reads it once, not twice.
  Storage(std::string_view key, std::span<const std::byte> bytes, std::function<void()> check = {})
      : key_(key), bytes_(bytes), check_(std::move(check)) {}

  std::string_view key() const { return key_; }
  uint64_t size() const { return bytes_.size(); }
  /// Sound bytes. Throws oq::Error where the checksum says otherwise.
  std::span<const std::byte> bytes() const;
  /// Where the bytes lie, sound or not.
  std::span<const std::byte> place() const { return bytes_; }

 private:
  std::string_view key_;
  std::span<const std::byte> bytes_;
  std::function<void()> check_;
  mutable std::once_flag checked_;
};

/// A view of a storage: element (i, j, ..) is number offset + i * strides[0] + j * strides[1] + ..
/// of it. Every element lies inside the storage, and all of them together take no more than the
/// bytes of the whole file, though an expanded dimension (stride 0) repeats them.
struct Tensor {
  const Dtype* dtype = nullptr;
  std::shared_ptr<const Storage> storage;
  uint64_t offset = 0;                   ///< in elements, as are the strides
  std::vector<uint64_t> shape, strides;  ///< slowest first; empty for a scalar

  uint64_t elements() const;
  /// The elements lie one after the other in row-major order.
  bool contiguous() const;
  /// Elements [first, first + n) in row-major order, whatever the strides. PRECOND: they exist.
  /// `out` takes n * dtype->bytes. Throws where the storage's checksum is wrong.
  void read(uint64_t first, uint64_t n, std::byte* out) const;
  /// All of a contiguous tensor, in the file. PRECOND: contiguous(). Throws as read() does.
  std::span<const std::byte> bytes() const;
  /// The part of the file from the first element to the last, unchecked: for sizes and for giving
  /// pages back, not for reading.
  std::span<const std::byte> place() const;
};

class Dict;
class List;
struct Part;

/// "a tensor" for Tensor, ..: for error messages.
template <class T>
constexpr std::string_view kind_of() {
  if constexpr (std::is_same_v<T, bool>) return "a boolean";
  if constexpr (std::is_same_v<T, int64_t>) return "an integer";
  if constexpr (std::is_same_v<T, double>) return "a float";
  if constexpr (std::is_same_v<T, std::string_view>) return "a string";
  if constexpr (std::is_same_v<T, Dtype>) return "a dtype";
  if constexpr (std::is_same_v<T, Dict>) return "a dict";
  if constexpr (std::is_same_v<T, List>) return "a list";
  if constexpr (std::is_same_v<T, Tensor>) return "a tensor";
  if constexpr (std::is_same_v<T, Part>) return "a part of torch";
}

/// One node of the tree. Copies share what they hold.
class Value {
 public:
  Value() = default;  ///< None
  explicit Value(bool v) : v_(v) {}
  explicit Value(int64_t v) : v_(v) {}
  explicit Value(double v) : v_(v) {}
  explicit Value(std::string_view v) : v_(v) {}
  explicit Value(const Dtype* v) : v_(v) {}
  explicit Value(std::shared_ptr<const Dict> v) : v_(std::move(v)) {}
  explicit Value(std::shared_ptr<const List> v) : v_(std::move(v)) {}
  explicit Value(std::shared_ptr<const Tensor> v) : v_(std::move(v)) {}
  /// What tensors are made of while they are unpickled: of no use to anyone else.
  explicit Value(std::shared_ptr<const Part> v) : v_(std::move(v)) {}

  bool none() const { return std::holds_alternative<std::monostate>(v_); }
  /// The value as T, one of bool, int64_t, double, std::string_view, Dtype, Dict, List, Tensor;
  /// nullptr where it is something else. Nothing is converted: an integer is no double.
  template <class T>
  const T* as() const {
    if constexpr (std::is_same_v<T, Dtype>) {
      const auto* p = std::get_if<const Dtype*>(&v_);
      return p != nullptr ? *p : nullptr;
    } else if constexpr (std::is_class_v<T> && !std::is_same_v<T, std::string_view>) {
      const auto* p = std::get_if<std::shared_ptr<const T>>(&v_);
      return p != nullptr ? p->get() : nullptr;
    } else {
      return std::get_if<T>(&v_);
    }
  }
  /// "None", "a tensor", ..: for error messages.
  std::string_view kind() const;

 private:
  std::variant<std::monostate, bool, int64_t, double, std::string_view, const Dtype*,
               std::shared_ptr<const Dict>, std::shared_ptr<const List>,
               std::shared_ptr<const Tensor>, std::shared_ptr<const Part>>
      v_;
};

/// A list, tuple or torch.Size.
class List {
 public:
  std::span<const Value> items() const { return items_; }
  void add(Value value) { items_.push_back(std::move(value)); }

 private:
  std::vector<Value> items_;
};

/// A dict, OrderedDict or types.SimpleNamespace, in its order. Keys are strings or integers.
///
///     const Dict& root = file.dict();
///     const int64_t bits = root.get<int64_t>("bits");
///     const Tensor& scales = root.get<Dict>("model_state_dict").get<Tensor>("fc1.scales");
///     if (const bool* packing = root.find<bool>("packing")) ..
class Dict {
 public:
  struct Item {
    Value key, value;
  };

  /// `where`: the file, for errors.
  explicit Dict(std::shared_ptr<const std::string> where) : where_(std::move(where)) {}

  std::span<const Item> items() const { return items_; }
  const Value* find(std::string_view key) const;
  const Value* find(int64_t key) const;
  /// The value as T (see Value::as); nullptr where the key is absent or its value None. Throws
  /// where it is something else.
  template <class T>
  const T* find(std::string_view key) const {
    const Value* value = find(key);
    if (value == nullptr || value->none()) return nullptr;
    const T* found = value->as<T>();
    if (found == nullptr) fail(key, kind_of<T>(), value);
    return found;
  }
  /// The same where the key must be there.
  template <class T>
  const T& get(std::string_view key) const {
    const T* found = find<T>(key);
    if (found == nullptr) fail(key, kind_of<T>(), find(key));
    return *found;
  }

  /// False where the key is taken. PRECOND: the key is a string or an integer.
  [[nodiscard]] bool add(Value key, Value value);

 private:
  [[noreturn]] void fail(std::string_view key, std::string_view expected, const Value* found) const;

  std::shared_ptr<const std::string> where_;
  std::vector<Item> items_;
  std::map<std::variant<int64_t, std::string_view>, size_t> index_;
};

}  // namespace oq::torch
