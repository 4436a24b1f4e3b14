#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "format/memory.h"
#include "format/metadata.h"
#include "format/packed.h"

namespace oq {

constexpr uint16_t kVersionMajor = 0;
constexpr uint16_t kVersionMinor = 1;

/// What the bytes of a tensor are. The numbers are part of the format.
enum class Kind : uint8_t { f32 = 1, f16 = 2, bf16 = 3, bytes = 4, packed = 5 };

std::string_view to_string(Kind kind);

/// Bytes that a new file's metadata may come to, unless its writer says otherwise.
constexpr size_t kMetadataRoom = 16 << 10;

/// One directory entry. A vector is one row; a blob is one row of bytes.
struct TensorInfo {
  std::string name;
  Kind kind = Kind::f32;
  uint64_t rows = 1;
  uint64_t cols = 0;
  Packing packing = {};  ///< meaningful for Kind::packed only
  uint64_t offset = 0;   ///< in the file; the writer fills in these three
  uint64_t bytes = 0;
  uint32_t crc = 0;

  uint64_t elements() const { return rows * cols; }

  /// The bytes that kind, shape and packing call for. Throws oq::Error, naming the tensor, on
  /// overflow or on a packing that the format does not have.
  uint64_t expected_bytes() const;
};

/// A .oq file, mapped read-only and shared between processes.
///
/// Opening checks the header, the metadata and the directory against their CRCs and against the
/// file's size, in time proportional to the directory; of tensors only weak columns' indices are
/// read. What a tensor holds is safe to read whatever it is; `verify` says whether it is what was
/// written. Immutable after opening: any number of threads may read. All failures throw oq::Error.
class File {
 public:
  /// Pages::huge: copied into memory on such pages instead of being mapped, which takes the time
  /// and the memory of the whole file, and makes every later pass over it faster.
  static std::shared_ptr<const File> open(const std::filesystem::path& path,
                                          Pages pages = Pages::ordinary);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::filesystem::path& path() const { return path_; }
  uint64_t bytes() const { return map_.size(); }
  /// What was asked for when it was opened.
  Pages pages() const { return pages_; }
  const Metadata& metadata() const { return metadata_; }
  std::span<const TensorInfo> tensors() const { return tensors_; }

  const TensorInfo* find(std::string_view name) const;
  /// Like find, but a missing tensor is an error.
  const TensorInfo& tensor(std::string_view name) const;

  std::span<const std::byte> data(const TensorInfo& info) const {
    return map_.subspan(info.offset, info.bytes);
  }
  /// PRECOND: info is of Kind::packed.
  PackedView packed(const TensorInfo& info) const;

  /// CRC-32C of the CRCs of all tensors, in their order: which file this is, without reading it.
  uint32_t checksum() const;

  /// Reads every byte: tensor CRCs, finite scales, and zeros between all that is stored, packed
  /// tensors' sections included. What stands in their padding rows and columns is not looked at.
  void verify() const;
  /// The same for one tensor.
  void verify(const TensorInfo& info) const;

 private:
  friend class MemoryFile;  // makes one in anonymous memory (format/memory_file.h)
  friend std::shared_ptr<const File> open_with_weak(const std::filesystem::path& path,
                                                    const std::filesystem::path& weak, Pages pages);
  File() = default;
  /// `change`, if any, sees the opened file while its bytes are private and may become writable.
  static std::shared_ptr<const File> open(const std::filesystem::path& path, Pages pages,
                                          const std::function<void(File&)>& change);
  void map(Pages pages, bool is_private);
  void copy(int fd, size_t size);
  void replace_weak(const File& weak);
  /// A part of the private bytes, to be changed before anybody else sees the file.
  std::span<std::byte> writable(uint64_t offset, uint64_t bytes);
  void read_header();
  void read_directory(std::span<const std::byte> directory, uint64_t data_offset);
  void verify_gaps() const;
  Error error(Error::Parts parts) const;

  std::filesystem::path path_;
  std::span<const std::byte> map_;
  Pages pages_ = Pages::ordinary;
  std::span<const std::byte> metadata_bytes_, directory_bytes_;
  Metadata metadata_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string_view, size_t> index_;
};

/// Replaces a file's metadata in place: the new metadata goes into the free half of the metadata
/// region, and one write of the header then makes it the current one, so that a crash leaves
/// either the old or the new. Throws oq::Error when it does not fit.
void rewrite_metadata(const std::filesystem::path& path, const Metadata& metadata);

/// Writes a .oq file tensor by tensor into PATH.part, and renames it over PATH in `finish`, after
/// reading it back and checking it. Destroyed without `finish`, it removes PATH.part and leaves
/// PATH as it was. Not thread-safe. All failures throw oq::Error.
class Writer {
 public:
  /// `max_tensors` reserves the directory; `metadata_room` the bytes that metadata may come to.
  Writer(std::filesystem::path path, size_t max_tensors, size_t metadata_room = kMetadataRoom);
  ~Writer();
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;

  Metadata metadata;  ///< may be changed until `finish`

  /// A whole tensor at once.
  void add(TensorInfo info, std::span<const std::byte> data);

  /// Or piece by piece: begin, any number of writes that add up to info.expected_bytes(), end.
  void begin(TensorInfo info);
  void write(std::span<const std::byte> data);
  void end();

  void finish();

 private:
  void pwrite_all(std::span<const std::byte> data, uint64_t offset);
  Error io_error(const std::string& what) const;

  std::filesystem::path path_, part_;
  int fd_ = -1;
  size_t max_tensors_;
  uint64_t metadata_room_;
  uint64_t position_ = 0;
  bool open_tensor_ = false;
  uint64_t written_ = 0;  ///< of the open tensor
  std::vector<TensorInfo> tensors_;
};

}  // namespace oq
