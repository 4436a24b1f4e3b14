#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace oq::test {

/// Makes the bytes of a GGUF version 3 file, sound or not.
class GgufBuilder {
 public:
  enum Type : uint32_t {
    u8 = 0,
    i8,
    u16,
    i16,
    u32,
    i32,
    f32,
    boolean,
    string,
    array,
    u64,
    i64,
    f64
  };

  uint32_t version = 3;
  uint64_t alignment = 32;  ///< of the data; `set_u32("general.alignment", ..)` says so in the file

  void set_u32(std::string_view key, uint32_t value) { put(head(key, u32), value); }
  void set_f32(std::string_view key, float value) { put(head(key, f32), value); }
  void set_bool(std::string_view key, bool value) { put(head(key, boolean), uint8_t(value)); }
  void set_string(std::string_view key, std::string_view value) { text(head(key, string), value); }

  void set_strings(std::string_view key, const std::vector<std::string>& values) {
    std::string& out = array_head(key, string, values.size());
    for (const std::string& v : values) text(out, v);
  }
  template <class T>
  void set_numbers(std::string_view key, Type type, const std::vector<T>& values) {
    std::string& out = array_head(key, type, values.size());
    for (T v : values) put(out, v);
  }
  /// A key, its type's number and any bytes.
  void set_raw(std::string_view key, uint32_t type, std::string_view bytes) {
    head(key, type) += bytes;
  }

  /// `dims` fastest first; `type` is the number in the file.
  void add_tensor(std::string_view name, const std::vector<uint64_t>& dims, uint32_t type,
                  std::string_view bytes) {
    add_tensor_at(name, dims, type, data_.size());
    data_ += bytes;
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
  }
  void add_tensor_at(std::string_view name, const std::vector<uint64_t>& dims, uint32_t type,
                     uint64_t offset) {
    text(infos_, name);
    put(infos_, uint32_t(dims.size()));
    for (uint64_t d : dims) put(infos_, d);
    put(infos_, type);
    put(infos_, offset);
    ++n_tensors;
  }

  std::string bytes() const {
    std::string out = "GGUF";
    put(out, version);
    put(out, n_tensors);
    put(out, n_entries);
    out += entries_ + infos_;
    out.resize((out.size() + alignment - 1) / alignment * alignment);
    return out + data_;
  }

  uint64_t n_tensors = 0, n_entries = 0;  ///< as the header will claim

 private:
  template <class T>
  static void put(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  static void text(std::string& out, std::string_view s) {
    put(out, uint64_t(s.size()));
    out += s;
  }
  std::string& head(std::string_view key, uint32_t type) {
    ++n_entries;
    text(entries_, key);
    put(entries_, type);
    return entries_;
  }
  std::string& array_head(std::string_view key, uint32_t type, uint64_t n) {
    std::string& out = head(key, array);
    put(out, type);
    put(out, n);
    return out;
  }

  std::string entries_, infos_, data_;
};

}  // namespace oq::test
