#pragma once

#include <optional>

#include "tools/tensor_files/torch/pickle.h"

namespace oq::torch {

/// A class or function that a pickle may name, or a storage that it loaded.
struct Part {
  enum class Id {
    ordered_dict,
    name_space,
    size,
    rebuild_tensor_v2,
    rebuild_tensor_v3,
    rebuild_parameter,
    storage_class,
    storage
  };
  Id id;
  const Dtype* dtype = nullptr;  ///< of storages and their classes; nullptr: untyped
  std::shared_ptr<const Storage> storage = nullptr;
};

// All errors below lack their place, which the unpickler knows.

/// The global of a name (a Part, or a Dtype), if it is one of the few that are known.
std::optional<Value> find_global(std::string_view module, std::string_view name);

/// The storage that a persistent id refers to, as a Part:
/// ("storage", class, key, device, number of elements).
Value load_storage(const Value& id, const FindStorage& find_storage);

/// The tensor that torch._utils._rebuild_tensor_v2 makes of
/// (storage, offset, shape, strides, requires_grad, hooks[, metadata]); in _v3 the dtype stands
/// before the metadata. Held to what unpickle() promises.
Value rebuild_tensor(Part::Id version, std::span<const Value> args, uint64_t max_tensor_bytes);

}  // namespace oq::torch
