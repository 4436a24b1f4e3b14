#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "format/bytes.h"
#include "format/replace_file.h"
#include "tools/tensor_files/safetensors.h"

namespace oq {
namespace {

/// PATH.part, which is gone unless it was put in PATH's place.
class PartFile {
 public:
  explicit PartFile(const std::filesystem::path& path)
      : path_(path), part_(path.string() + ".part") {
    fd_ = open(part_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd_ < 0) throw error("cannot be created");
  }
  ~PartFile() {
    if (fd_ < 0) return;
    close(fd_);
    unlink(part_.c_str());
  }
  PartFile(const PartFile&) = delete;
  PartFile& operator=(const PartFile&) = delete;

  void write(std::span<const std::byte> data) {
    while (!data.empty()) {
      const ssize_t n = ::write(fd_, data.data(), data.size());
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) throw error("cannot be written");
      data = data.subspan(size_t(n));
    }
  }

  void finish() {
    if (fsync(fd_) != 0) throw error("cannot be flushed to disk");
    if (!replace_file(part_, path_)) throw error("cannot be renamed");
    close(fd_);
    fd_ = -1;
  }

 private:
  Error error(const char* what) const {
    return Error({.what = std::string(what) + ": " + std::strerror(errno),
                  .where = part_.string(),
                  .hint = "check the folder, its permissions and its free space"});
  }

  std::filesystem::path path_, part_;
  int fd_ = -1;
};

}  // namespace

void write_safetensors(const std::filesystem::path& path, std::span<const SafeTensor> tensors,
                       const SafeMetadata& metadata) {
  nlohmann::ordered_json header;
  header["__metadata__"] = metadata;
  uint64_t end = 0;
  for (const SafeTensor& t : tensors) {
    header[t.name] = {
        {"dtype", t.dtype}, {"shape", t.shape}, {"data_offsets", {end, end + t.data.size()}}};
    end += t.data.size();
  }
  // Of a name that is not UTF-8, what is: a header that nobody could read would be worse.
  std::string text = header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  text.resize(round_up(text.size(), 8), ' ');  // so that the data are aligned
  const uint64_t length = text.size();
  PartFile out(path);
  out.write(std::as_bytes(std::span(&length, 1)));
  out.write(std::as_bytes(std::span(text)));
  for (const SafeTensor& t : tensors) out.write(t.data);
  out.finish();
}

}  // namespace oq
