#include "format/memory_file.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include <sys/mman.h>

#include "format/bytes.h"
#include "format/crc32c.h"
#include "format/file_layout.h"

namespace oq {

MemoryFile::MemoryFile(std::string name, Metadata metadata, std::vector<TensorInfo> tensors,
                       Pages pages)
    : name_(std::move(name)),
      metadata_(std::move(metadata)),
      tensors_(std::move(tensors)),
      pages_(pages),
      data_end_(disk::data_offset(kMetadataRoom, tensors_.size())) {
  for (TensorInfo& t : tensors_) data_end_ = disk::place(t, data_end_, name_);
  map_ = map_memory(name_, round_up(data_end_, disk::kDataAlign), pages);
}

MemoryFile::~MemoryFile() {
  if (!map_.empty()) munmap(map_.data(), map_.size());
}

void MemoryFile::populate(uint64_t begin, uint64_t end) {
#if defined(MADV_POPULATE_WRITE)  // Linux 5.14
  begin = begin / disk::kDataAlign * disk::kDataAlign;
  madvise(map_.data() + begin, std::min(end, bytes()) - begin, MADV_POPULATE_WRITE);
#endif
}

void MemoryFile::seal(size_t tensor) { tensors_[tensor].crc = crc32c(data(tensor)); }

std::shared_ptr<const File> MemoryFile::finish() {
  const disk::Front front = disk::make_front(metadata_, kMetadataRoom, tensors_, data_end_, name_);
  const auto directory = std::as_bytes(std::span(front.directory));
  std::memcpy(map_.data(), &front.header, sizeof(front.header));
  std::memcpy(map_.data() + front.header.metadata_offset, front.metadata.data(),
              front.metadata.size());
  std::memcpy(map_.data() + front.header.directory_offset, directory.data(), directory.size());
  mprotect(map_.data(), map_.size(), PROT_READ);  // a stray write crashes, as in a mapped file

  std::shared_ptr<File> file(new File);
  file->path_ = name_;
  file->map_ = std::exchange(map_, {});
  file->pages_ = pages_;
  with_place(name_, [&] { file->read_header(); });
  return file;
}

}  // namespace oq
