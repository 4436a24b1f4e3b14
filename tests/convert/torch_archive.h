#pragma once

// Files of torch.save, byte by byte: sound ones, and those that torch would never write.

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/tiny_model.h"
#include "tools/tensor_files/torch/crc32.h"

namespace oq::test {

/// Little-endian bytes of a number.
template <class T>
std::string le(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

// --- zip ---

struct ZipPart {
  std::string name = {}, data = {};
  uint16_t method = 0, flags = 0;
  std::optional<uint32_t> crc = {};
  std::optional<uint32_t> size = {};    ///< as the directory gives it
  std::optional<uint32_t> offset = {};  ///< of the local header, likewise
  std::string local_name = {};          ///< where it differs
  bool zip64 = false;                   ///< sizes and offset in the extra field
  bool sizes_follow = false;            ///< as torch does: in a descriptor behind the data
};

inline uint32_t crc_of(const std::string& data) {
  return oq::torch::crc32(std::as_bytes(std::span(data)));
}

inline std::string zip_end(size_t entries, size_t bytes, size_t offset, bool zip64,
                           const std::string& comment = {}) {
  std::string out;
  if (zip64) {
    const size_t at = offset + bytes;
    out += "PK\6\6" + le(uint64_t(44)) + le(uint16_t(45)) + le(uint16_t(45)) + le(uint32_t(0)) +
           le(uint32_t(0)) + le(uint64_t(entries)) + le(uint64_t(entries)) + le(uint64_t(bytes)) +
           le(uint64_t(offset));
    out += "PK\6\7" + le(uint32_t(0)) + le(uint64_t(at)) + le(uint32_t(1));
  }
  const auto n = uint16_t(zip64 ? 0xFFFF : entries);
  out += "PK\5\6" + le(uint32_t(0)) + le(n) + le(n) + le(zip64 ? ~0u : uint32_t(bytes)) +
         le(zip64 ? ~0u : uint32_t(offset)) + le(uint16_t(comment.size())) + comment;
  return out;
}

inline std::string zip_bytes(const std::vector<ZipPart>& parts, bool zip64 = false) {
  std::string out, directory;
  for (const ZipPart& p : parts) {
    const auto flags = uint16_t(p.flags | (p.sizes_follow ? 8 : 0));
    const uint32_t crc = p.crc.value_or(crc_of(p.data));
    const auto true_size = uint32_t(p.data.size());
    const uint32_t size = p.zip64 ? ~0u : p.size.value_or(true_size);
    const auto offset = uint32_t(out.size());
    const std::string& name = p.local_name.empty() ? p.name : p.local_name;
    std::string wide;  // zip64: both sizes, and in the directory the offset
    if (p.zip64) {
      wide = le(uint64_t(p.size.value_or(true_size)));
      wide += wide;
    }
    const auto field = [](const std::string& values) {
      return values.empty() ? values : le(uint16_t(1)) + le(uint16_t(values.size())) + values;
    };
    const auto common = [&](bool directory_header) {
      const bool later = p.sizes_follow && !directory_header;
      return le(flags) + le(p.method) + le(uint32_t(0)) + le(later ? 0 : crc) +
             le(later ? 0 : size) + le(later ? 0 : size);
    };
    const std::string local = p.sizes_follow ? std::string() : field(wide);
    out += "PK\3\4" + le(uint16_t(20)) + common(false) + le(uint16_t(name.size())) +
           le(uint16_t(local.size())) + name + local + p.data;
    if (p.sizes_follow) out += "PK\7\10" + le(crc) + le(true_size) + le(true_size);
    const std::string central =
        field(p.zip64 ? wide + le(uint64_t(p.offset.value_or(offset))) : std::string());
    directory += "PK\1\2" + le(uint16_t(20)) + le(uint16_t(20)) + common(true) +
                 le(uint16_t(p.name.size())) + le(uint16_t(central.size())) + le(uint16_t(0)) +
                 le(uint16_t(0)) + le(uint16_t(0)) + le(uint32_t(0)) +
                 le(p.zip64 ? ~0u : p.offset.value_or(offset)) + p.name + central;
  }
  return out + directory + zip_end(parts.size(), directory.size(), out.size(), zip64);
}

// --- pickle ---

inline std::string text(const std::string& s) { return "X" + le(uint32_t(s.size())) + s; }

inline std::string integer(uint64_t n) {
  return n < 256 ? "K" + le(uint8_t(n)) : "\x8A\x08" + le(uint64_t(n));
}

inline std::string tuple(const std::vector<uint64_t>& numbers) {
  std::string out = "(";
  for (uint64_t n : numbers) out += integer(n);
  return out + "t";
}

inline std::string global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}

inline std::string pickle(const std::string& body) { return "\x80\x02" + body + "."; }

/// A dict of (key, pickled value).
inline std::string dict(const std::vector<std::pair<std::string, std::string>>& items) {
  std::string out = "}(";
  for (const auto& [key, value] : items) out += text(key) + value;
  return out + "u";
}

inline std::string storage(const std::string& storage_class, const std::string& key,
                           uint64_t elements) {
  return "(" + text("storage") + global("torch", storage_class) + text(key) + text("cpu") +
         integer(elements) + "tQ";
}

/// _rebuild_tensor_v2 on a pickled storage.
inline std::string tensor(const std::string& storage, uint64_t offset,
                          const std::vector<uint64_t>& shape, const std::vector<uint64_t>& strides,
                          const std::string& more = {}) {
  return global("torch._utils", "_rebuild_tensor_v2") + "(" + storage + integer(offset) +
         tuple(shape) + tuple(strides) + "\x89" + global("collections", "OrderedDict") + ")R" +
         more + "tR";
}

// --- files ---

/// The archive of a pickle and the bytes of storages "0", "1", ..
inline std::string torch_bytes(const std::string& pickle, const std::vector<std::string>& storages,
                               const std::vector<ZipPart>& more = {}) {
  std::vector<ZipPart> parts = {{.name = "archive/data.pkl", .data = pickle, .sizes_follow = true},
                                {.name = "archive/byteorder", .data = "little"},
                                {.name = "archive/version", .data = "3\n"}};
  for (size_t i = 0; i < storages.size(); ++i) {
    parts.push_back(
        {.name = "archive/data/" + std::to_string(i), .data = storages[i], .sizes_follow = true});
  }
  parts.insert(parts.end(), more.begin(), more.end());
  return zip_bytes(parts, true);
}

inline std::string storage_class(const std::string& dtype) {
  return dtype == "F16" ? "HalfStorage" : dtype == "BF16" ? "BFloat16Storage" : "FloatStorage";
}

/// The state_dict of tensors, each in a storage of its own. `transposed`: matrices lie column by
/// column and are viewed the right way round.
inline std::string torch_bytes(const std::vector<TinyTensor>& tensors, const std::string& dtype,
                               bool transposed = false) {
  std::vector<std::pair<std::string, std::string>> items;
  std::vector<std::string> storages;
  for (const TinyTensor& t : tensors) {
    std::vector<uint64_t> shape = {t.rows, t.cols}, strides = {t.cols, 1};
    std::vector<float> values = t.values;
    if (transposed) {
      strides = {1, t.rows};
      for (uint64_t r = 0; r < t.rows; ++r) {
        for (uint64_t c = 0; c < t.cols; ++c) values[c * t.rows + r] = t.values[r * t.cols + c];
      }
    }
    if (t.rows == 1) shape = {t.cols}, strides = {1};
    const std::string own =
        storage(storage_class(dtype), std::to_string(storages.size()), t.values.size());
    items.emplace_back(t.hf_name, tensor(own, 0, shape, strides));
    storages.push_back(encode_floats(values, dtype));
  }
  return torch_bytes(pickle(dict(items)), storages);
}

}  // namespace oq::test
