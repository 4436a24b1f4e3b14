#pragma once

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>

#include <unistd.h>

namespace oq::test {

/// A file or folder under OQ_TEST_DATA. Where it is not there, says so on stderr: the test then
/// returns without checking anything.
inline std::optional<std::filesystem::path> data(std::string_view relative) {
  const char* root = std::getenv("OQ_TEST_DATA");
  if (root != nullptr && *root != '\0') {
    std::filesystem::path path = std::filesystem::path(root) / relative;
    if (std::filesystem::exists(path)) return path;
  }
  std::fprintf(stderr, "SKIPPED: needs OQ_TEST_DATA/%s, which is not there\n",
               std::string(relative).c_str());
  return std::nullopt;
}

inline std::filesystem::path golden(std::string_view relative) {
  return std::filesystem::path(OQ_GOLDEN_DIR) / relative;
}

/// A folder that goes away with the object.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "oq-test-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) std::abort();
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline std::string read_file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_file(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), std::streamsize(bytes.size()));
}

}  // namespace oq::test
