#include "tools/tensor_files/torch/file.h"

#include <algorithm>

#include <fmt/format.h>

#include "format/error.h"
#include "tools/tensor_files/torch/printable.h"

namespace oq::torch {
namespace {

constexpr const char* kDamaged = "the file is damaged: download it again";

std::string_view text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// Says what a file is that is taken for an archive of torch and is none.
void refuse_others(std::span<const std::byte> bytes, const std::string& where) {
  const std::string_view begin = text(bytes.first(std::min<size_t>(bytes.size(), 64)));
  const auto refuse = [&](const char* what, const char* hint) {
    throw Error({.what = what, .where = where, .hint = hint});
  };
  // The pickle of the number 0x1950a86a20f9469cfc6c, with which files of torch.save began.
  if (begin.substr(0, 2) == "\x80\x02" && begin.substr(2, 12) ==
                                              "\x8A\nl\xFC\x9C"
                                              "F\xF9 j\xA8P\x19") {
    refuse("was saved by torch before version 1.6, whose format is not read",
           "load it with a newer torch and save it again with torch.save");
  }
  if (begin.rfind("version https://git-lfs", 0) == 0) {
    refuse("is not the weights, but a Git LFS note of where they are",
           "fetch it with git lfs pull");
  }
  if (begin.substr(0, 4) != "PK\x03\x04") {
    refuse("is no file of torch.save, which begins with 'PK'",
           "give a checkpoint of torch 1.6 or later, or safetensors");
  }
}

/// The folder that torch puts everything in; it may have any name.
std::string find_folder(const ZipArchive& zip, const std::string& where) {
  std::string folder;
  for (const ZipEntry& entry : zip.entries()) {
    const size_t slash = entry.name.find('/');
    if (slash == std::string_view::npos || entry.name.substr(slash + 1) != "data.pkl") continue;
    if (!folder.empty()) {
      throw Error({.what = "holds two pickles", .where = where, .hint = "do not trust this file"});
    }
    folder = entry.name.substr(0, slash + 1);
  }
  if (folder.empty()) {
    throw Error({.what = "is a zip archive without data.pkl",
                 .where = where,
                 .hint = "this is not a file of torch.save"});
  }
  return folder;
}

}  // namespace

File::File(const std::filesystem::path& path)
    : where_(path.string()), map_(std::make_unique<MappedFile>(path)), bytes_(map_->bytes()) {
  read();
}

File::File(std::span<const std::byte> bytes, const std::string& where)
    : where_(where), bytes_(bytes) {
  read();
}

void File::read() {
  refuse_others(bytes_, where_);
  zip_ = std::make_unique<ZipArchive>(bytes_, where_);
  const std::string folder = find_folder(*zip_, where_);
  if (zip_->find(folder + "constants.pkl") != nullptr) {
    throw Error({.what = "is a TorchScript program",
                 .where = where_,
                 .hint = "no code of a checkpoint is run: save its state_dict with torch.save"});
  }
  if (const ZipEntry* order = zip_->find(folder + "byteorder")) {
    if (text(order->data) != "little") {
      throw Error({.what = "was saved on a machine of another byte order",
                   .where = where_,
                   .expected = "little",
                   .found = printable(text(order->data))});
    }
  }
  const ZipEntry& pickle = *zip_->find(folder + "data.pkl");
  zip_->check_crc(pickle);
  root_ = unpickle(
      pickle.data, where_ + ", data.pkl",
      [&](std::string_view key) { return storage(folder, key); }, bytes_.size());
}

std::shared_ptr<const Storage> File::storage(const std::string& folder, std::string_view key) {
  if (const auto known = storages_.find(key); known != storages_.end()) return known->second;
  const ZipEntry* entry = zip_->find(fmt::format("{}data/{}", folder, key));
  if (entry == nullptr) {
    throw Error({.what = fmt::format("storage '{}' is missing", printable(key)),
                 .where = where_,
                 .hint = kDamaged});
  }
  auto storage = std::make_shared<const Storage>(
      key, entry->data, [zip = zip_.get(), entry] { zip->check_crc(*entry); });
  return storages_.emplace(key, std::move(storage)).first->second;
}

const Dict& File::dict() const {
  const Dict* dict = root_.as<Dict>();
  if (dict == nullptr) {
    throw Error({.what = "holds no dict",
                 .where = where_,
                 .expected = "a state_dict",
                 .found = std::string(root_.kind()),
                 .hint = "save the model's state_dict"});
  }
  return *dict;
}

}  // namespace oq::torch
