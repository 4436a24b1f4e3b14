#include "tools/convert/gguf_checkpoint.h"

#include <fmt/format.h>

namespace oq::convert {

GgufCheckpoint::GgufCheckpoint(const std::filesystem::path& path)
    : map_(path), gguf_(map_.bytes(), path.string()), config_(gguf_) {
  if (const int64_t parts = gguf_.get_or<int64_t>("split.count", 1); parts > 1) {
    throw Error({.what = fmt::format("is one of {} parts of a split GGUF", parts),
                 .where = path.string(),
                 .hint = "join them first: llama-gguf-split --merge FIRST_PART WHOLE.gguf"});
  }
  for (const GgufTensor& t : gguf_.tensors()) {
    add({.name = std::string(t.name),
         .rows = t.rows(),
         .cols = t.cols(),
         .dtype = std::string(t.type->name),
         .type = t.type,
         .data = t.data},
        path.string());
  }
}

std::string GgufCheckpoint::architecture() const {
  return std::string(gguf_.get<std::string_view>("general.architecture"));
}

}  // namespace oq::convert
