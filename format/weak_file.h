#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "format/file.h"

namespace oq {

/// Weak columns apart from their model: a small .oq file of one f16 or bf16 tensor for every packed
/// tensor that has some, under its name, [panels][weak columns * 8] as the packed tensor holds
/// them, and in the metadata, as "weak.base", which file they are for.

/// Weak weights by tensor: [rows][weak columns], row by row.
using WeakWeights = std::map<std::string, std::vector<float>>;

/// Bytes that the metadata of such a file may come to.
constexpr size_t kWeakMetadataRoom = 4 << 10;

/// Finishes `out`, which has room for as many tensors, as such a file for `base`; `metadata` says
/// where the weights come from. Throws oq::Error naming the tensor that has no weak columns or
/// another number of them, or a weight that does not fit its 16 bits.
void write_weak_file(Writer& out, const File& base, const WeakWeights& weights, Metadata metadata);

/// Opens `path` with the weak columns of `weak` instead of its own; as File::open where `weak` is
/// empty. The file on disk stays as it is: its mapping is private, so that only pages with weak
/// columns are copied, or `pages` have the whole of it copied anyway. Reads the tensors in question
/// for their checksums. Throws oq::Error where `weak` belongs to another file, or where it or one
/// of these tensors is damaged.
std::shared_ptr<const File> open_with_weak(const std::filesystem::path& path,
                                           const std::filesystem::path& weak,
                                           Pages pages = Pages::ordinary);

}  // namespace oq
