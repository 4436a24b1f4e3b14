#include <cerrno>
#include <cstring>
#include <memory>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/bytes.h"
#include "format/crc32c.h"
#include "format/file_layout.h"
#include "format/replace_file.h"

namespace oq {
namespace {

constexpr uint64_t kHeaderBytes = sizeof(disk::Header);

/// The whole of `data` at `offset`; false with errno set otherwise.
bool pwrite_fully(int fd, std::span<const std::byte> data, uint64_t offset) {
  while (!data.empty()) {
    const ssize_t n = pwrite(fd, data.data(), data.size(), off_t(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      if (n == 0) errno = ENOSPC;
      return false;
    }
    data = data.subspan(size_t(n));
    offset += uint64_t(n);
  }
  return true;
}

/// Opens a file for writing and locks it; -1 with errno set otherwise (EWOULDBLOCK: somebody has
/// the lock). Whoever had the lock may have renamed the file away while we opened it: the lock is
/// good only while the name still names what is locked.
int open_locked(const std::filesystem::path& path, int flags) {
  while (true) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | flags, 0644);
    if (fd < 0) return -1;
    struct stat ours {
    }, named{};
    if (flock(fd, LOCK_EX | LOCK_NB) != 0 || fstat(fd, &ours) != 0) {
      const int error = errno;
      close(fd);
      errno = error;
      return -1;
    }
    if (stat(path.c_str(), &named) == 0 && named.st_dev == ours.st_dev &&
        named.st_ino == ours.st_ino) {
      return fd;
    }
    close(fd);
  }
}

}  // namespace

Writer::Writer(std::filesystem::path path, size_t max_tensors, size_t metadata_room)
    : path_(std::move(path)),
      part_(path_.string() + ".part"),
      max_tensors_(max_tensors),
      metadata_room_(round_up(metadata_room, 64)),
      position_(disk::data_offset(metadata_room_, max_tensors)) {
  std::error_code ignored;
  if (std::filesystem::exists(path_, ignored) &&
      !std::filesystem::is_regular_file(path_, ignored)) {
    throw Error({.what = "is not a regular file, so it is not replaced",
                 .where = path_.string(),
                 .hint = "choose another output"});
  }
  fd_ = open_locked(part_, O_CREAT | O_NOFOLLOW);
  if (fd_ < 0 && errno == EWOULDBLOCK) {
    throw Error({.what = "is being written by another process",
                 .where = part_.string(),
                 .hint = "wait for it to end, or choose another output"});
  }
  if (fd_ < 0) throw io_error("cannot be created");
  if (ftruncate(fd_, 0) != 0) {
    const Error e = io_error("cannot be emptied");
    unlink(part_.c_str());
    close(fd_);
    throw e;
  }
}

Writer::~Writer() {
  if (fd_ < 0) return;
  unlink(part_.c_str());
  close(fd_);
}

Error Writer::io_error(const std::string& what) const {
  const int error = errno;
  const bool full = error == ENOSPC || error == EFBIG || error == EDQUOT;
  return Error({.what = what + ": " + std::strerror(error),
                .where = part_.string(),
                .hint = full ? "free some space or choose another folder; nothing was replaced"
                             : "check the folder and its permissions; nothing was replaced"});
}

void Writer::pwrite_all(std::span<const std::byte> data, uint64_t offset) {
  if (!pwrite_fully(fd_, data, offset)) throw io_error("cannot be written");
}

void Writer::add(TensorInfo info, std::span<const std::byte> data) {
  begin(std::move(info));
  write(data);
  end();
}

void Writer::begin(TensorInfo info) {
  if (open_tensor_ || tensors_.size() == max_tensors_) {
    throw Error({.what = open_tensor_ ? "the tensor before it was not ended"
                                      : "more tensors than the directory has room for",
                 .where = path_.string() + ", tensor '" + info.name + "'",
                 .expected = fmt::format("at most {}", max_tensors_)});
  }
  disk::place(info, position_, path_.string());
  position_ = info.offset;
  written_ = 0;
  open_tensor_ = true;
  tensors_.push_back(std::move(info));
}

void Writer::write(std::span<const std::byte> data) {
  TensorInfo& t = tensors_.back();
  if (!open_tensor_ || data.size() > t.bytes - written_) {
    throw Error({.what = "more bytes than the tensor has",
                 .where = path_.string() + ", tensor '" + t.name + "'",
                 .expected = std::to_string(t.bytes),
                 .found = std::to_string(written_ + data.size())});
  }
  pwrite_all(data, t.offset + written_);
  t.crc = crc32c(data, t.crc);
  written_ += data.size();
}

void Writer::end() {
  const TensorInfo& t = tensors_.back();
  if (!open_tensor_ || written_ != t.bytes) {
    throw Error({.what = "fewer bytes than the tensor has",
                 .where = path_.string() + ", tensor '" + t.name + "'",
                 .expected = std::to_string(t.bytes),
                 .found = std::to_string(written_)});
  }
  open_tensor_ = false;
  position_ = t.offset + t.bytes;
}

void Writer::finish() {
  const disk::Front front =
      disk::make_front(metadata, metadata_room_, tensors_, position_, path_.string());
  const disk::Header& h = front.header;
  if (ftruncate(fd_, off_t(h.file_bytes)) != 0) throw io_error("cannot be extended");
  pwrite_all(front.metadata, h.metadata_offset);
  pwrite_all(std::as_bytes(std::span(front.directory)), h.directory_offset);
  pwrite_all(std::as_bytes(std::span(&h, 1)), 0);  // last: without it nothing loads
  if (fsync(fd_) != 0) throw io_error("cannot be flushed to disk");
  File::open(part_)->verify();
  if (!replace_file(part_, path_)) throw io_error("cannot be renamed");
  close(fd_);
  fd_ = -1;
}

void rewrite_metadata(const std::filesystem::path& path, const Metadata& metadata) {
  const int fd = open_locked(path, 0);
  const std::unique_ptr<const int, void (*)(const int*)> closer(&fd, [](const int* f) {
    if (*f >= 0) close(*f);
  });
  const auto fail = [&](const char* what, const char* hint = "the old metadata is still in force") {
    return Error({.what = std::string(what) + ": " + std::strerror(errno),
                  .where = path.string(),
                  .hint = hint});
  };
  if (fd < 0) throw fail("cannot be opened for writing");
  File::open(path);  // refuses what is not a sound file
  disk::Header h;
  if (pread(fd, &h, sizeof(h), 0) != ssize_t(sizeof(h))) throw fail("cannot be read");
  std::vector<std::byte> encoded = metadata.encode();
  const size_t encoded_bytes = encoded.size();
  if (encoded_bytes > h.metadata_capacity) {
    throw disk::metadata_too_large(path.string(), encoded_bytes, h.metadata_capacity);
  }
  encoded.resize(h.metadata_capacity);  // with zeros over what an interrupted edit left there
  const uint32_t old_offset = h.metadata_offset;
  h.metadata_offset = h.metadata_offset == kHeaderBytes
                          ? uint32_t(kHeaderBytes) + h.metadata_capacity
                          : uint32_t(kHeaderBytes);
  h.metadata_bytes = uint32_t(encoded_bytes);
  h.metadata_crc = crc32c(std::span(encoded).first(encoded_bytes));
  disk::seal(h);
  if (!pwrite_fully(fd, encoded, h.metadata_offset) || fsync(fd) != 0) {
    throw fail("metadata cannot be written");
  }
  if (!pwrite_fully(fd, std::as_bytes(std::span(&h, 1)), 0) || fsync(fd) != 0) {
    throw fail("header cannot be written");
  }
  const std::vector<std::byte> zeros(h.metadata_capacity);
  if (!pwrite_fully(fd, zeros, old_offset)) {
    throw fail("old metadata cannot be cleared", "the new metadata is in force; edit again");
  }
}

}  // namespace oq
