#pragma once

#include "tools/tensor_files/torch/value.h"

namespace oq::torch {

/// The storage of a key of the archive. Throws where there is none.
using FindStorage = std::function<std::shared_ptr<const Storage>(std::string_view key)>;

/// The value of a pickle as torch.save writes it (protocol 2 to 5).
///
/// A pickle is a program, so this is an interpreter; but it can build only the values of value.h.
/// It knows the opcodes that make them and a closed table of globals: collections.OrderedDict,
/// types.SimpleNamespace, torch.Size, torch's dtypes and storage classes, and the functions of
/// torch._utils that rebuild tensors and parameters. Every other opcode or global is refused by
/// name before anything is done with it.
///
/// Bounds, whatever the bytes are: the tree is at most 64 levels deep and has at most 2^21 nodes,
/// counted as often as it reaches them, so that walking it is cheap although parts may be shared;
/// nothing holds itself; memory is bounded by a multiple of the pickle's length, which is at most
/// 64 MB. A tensor lies inside its storage and unfolds to at most `max_tensor_bytes`.
///
/// Strings of the result are views into `pickle`. Throws oq::Error naming `where` and the position.
Value unpickle(std::span<const std::byte> pickle, const std::string& where,
               const FindStorage& find_storage, uint64_t max_tensor_bytes);

}  // namespace oq::torch
