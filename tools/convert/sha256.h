#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <stop_token>
#include <string>

namespace oq::convert {

/// SHA-256 (FIPS 180-4) of bytes that come piece by piece.
class Sha256 {
 public:
  void update(std::span<const std::byte> data);
  /// The digest in hexadecimal; the object is used up.
  std::string hex();

 private:
  void block(const std::byte* p);

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::byte, 64> rest_ = {};
  uint64_t length_ = 0;
};

/// Throws oq::Error when the file cannot be read. Asked to stop, it gives up and returns "".
std::string sha256_file(const std::filesystem::path& path, const std::stop_token& stop = {});

}  // namespace oq::convert
