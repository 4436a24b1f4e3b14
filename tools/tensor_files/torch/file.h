#pragma once

#include <filesystem>

#include "tools/tensor_files/mapped_file.h"
#include "tools/tensor_files/torch/pickle.h"
#include "tools/tensor_files/torch/zip.h"

namespace oq::torch {

/// A file of torch.save (.bin, .pt, .pth): a zip archive of one pickle and its storages, as torch
/// 1.6 and later write it. Opening costs the pickle, not the storages. Immutable: any number of
/// threads may read. Throws oq::Error naming the file.
class File {
 public:
  explicit File(const std::filesystem::path& path);
  /// The same over bytes in memory, which must outlive the object.
  File(std::span<const std::byte> bytes, const std::string& where);

  const std::string& where() const { return where_; }
  const Value& root() const { return root_; }
  /// The root where it is a dict, as that of every checkpoint is; else throws.
  const Dict& dict() const;

 private:
  void read();
  std::shared_ptr<const Storage> storage(const std::string& folder, std::string_view key);

  std::string where_;
  std::unique_ptr<MappedFile> map_;
  std::span<const std::byte> bytes_;
  std::unique_ptr<ZipArchive> zip_;
  std::map<std::string_view, std::shared_ptr<const Storage>> storages_;
  Value root_;
};

}  // namespace oq::torch
