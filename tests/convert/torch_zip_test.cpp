// The zip reader on sound archives and on bad ones.

#include <numeric>

#include <doctest/doctest.h>

#include "format/error.h"
#include "tests/convert/torch_archive.h"
#include "tests/support.h"
#include "tools/tensor_files/torch/zip.h"

using namespace oq;
using test::zip_bytes;
using test::ZipPart;
using torch::crc32;
using torch::ZipArchive;
using torch::ZipEntry;

namespace {

std::string_view data(const ZipEntry& e) {
  return {reinterpret_cast<const char*>(e.data.data()), e.data.size()};
}

/// Opens an archive and checks every CRC.
void read(const std::string& bytes) {
  const ZipArchive zip(std::as_bytes(std::span(bytes)), "test.bin");
  for (const ZipEntry& e : zip.entries()) zip.check_crc(e);
}

void check_refused(const std::string& bytes, const char* says) {
  CAPTURE(says);
  try {
    read(bytes);
    FAIL_CHECK("was not refused");
  } catch (const Error& e) {
    CAPTURE(e.what());
    CHECK(std::string(e.what()).find(says) != std::string::npos);
    CHECK(std::string(e.what()).find("test.bin") != std::string::npos);
  }
}

const std::vector<ZipPart> kParts = {
    {.name = "x/a", .data = "first"},
    {.name = "x/empty", .data = ""},
    {.name = "x/torch", .data = "sizes behind", .sizes_follow = true},
    {.name = "x/wide", .data = "zip64 sizes", .zip64 = true}};

std::vector<ZipPart> with(ZipPart part) {
  std::vector<ZipPart> parts = kParts;
  parts.push_back(std::move(part));
  return parts;
}

}  // namespace

TEST_CASE("CRC-32 of known strings and of every length") {
  const auto crc = [](const std::string& s) { return crc32(std::as_bytes(std::span(s))); };
  CHECK(crc("") == 0);
  CHECK(crc("123456789") == 0xCBF43926);  // the check value that all catalogues of CRCs give
  CHECK(crc("The quick brown fox jumps over the lazy dog") == 0x414FA339);
  std::string bytes(100, '\0');
  std::iota(bytes.begin(), bytes.end(), char(5));
  for (size_t n = 0; n <= bytes.size(); ++n) {  // bit by bit
    uint32_t c = ~0u;
    for (size_t i = 0; i < n; ++i) {
      c ^= uint8_t(bytes[i]);
      for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ ((c & 1) != 0 ? 0xEDB88320u : 0);
    }
    CHECK(crc(bytes.substr(0, n)) == ~c);
  }
}

TEST_CASE("a sound archive, with and without zip64") {
  for (const bool zip64 : {false, true}) {
    const std::string bytes = zip_bytes(kParts, zip64);
    CHECK_NOTHROW(read(bytes));
    const ZipArchive zip(std::as_bytes(std::span(bytes)), "test.bin");
    REQUIRE(zip.entries().size() == kParts.size());
    for (const ZipPart& p : kParts) {
      const ZipEntry* e = zip.find(p.name);
      REQUIRE(e != nullptr);
      CHECK(data(*e) == p.data);
      CHECK(reinterpret_cast<const char*>(e->data.data()) >= bytes.data());  // nothing is copied
      CHECK(reinterpret_cast<const char*>(e->data.data()) <= bytes.data() + bytes.size());
    }
    CHECK(zip.find("x/b") == nullptr);
  }
  CHECK_NOTHROW(read(zip_bytes({})));
  CHECK_NOTHROW(read(test::zip_end(0, 0, 0, false, "a comment, PK\5\6 in it")));
}

TEST_CASE("an archive truncated at every byte") {
  for (const bool zip64 : {false, true}) {
    const std::string bytes = zip_bytes(kParts, zip64);
    for (size_t n = 0; n < bytes.size(); ++n) {
      CAPTURE(n);
      CHECK_THROWS_AS(read(bytes.substr(0, n)), Error);
    }
  }
}

TEST_CASE("flipped bits in an archive") {
  const std::string sound = zip_bytes(kParts, true);
  for (size_t i = 0; i < sound.size(); ++i) {
    for (int mask : {0x01, 0x02, 0x08, 0x10, 0x40, 0x80, 0xFF}) {
      std::string bytes = sound;
      bytes[i] = char(bytes[i] ^ mask);
      try {
        const ZipArchive zip(std::as_bytes(std::span(bytes)), "test.bin");
        size_t total = 0;
        for (const ZipEntry& e : zip.entries()) total += e.data.size();
        CHECK(total <= bytes.size());
      } catch (const Error&) {
      }
    }
  }
}

TEST_CASE("every flipped byte of an entry is noticed") {
  const std::string sound = zip_bytes(kParts);
  for (const ZipPart& p : kParts) {
    const size_t at = sound.find(p.data);
    for (size_t i = 0; i < p.data.size(); ++i) {
      std::string bytes = sound;
      bytes[at + i] = char(bytes[at + i] ^ 0x04);
      check_refused(bytes, "wrong CRC-32");
    }
  }
}

TEST_CASE("archives made to hurt") {
  check_refused("", "end record");
  check_refused(std::string(100'000, 'P'), "end record");
  check_refused(zip_bytes(kParts) + "x", "end record");
  check_refused("x" + zip_bytes(kParts), "");
  check_refused(zip_bytes(with({.name = "x/b", .data = "b", .crc = 7})), "wrong CRC-32");
  check_refused(zip_bytes(with({.name = "x/b", .data = "b", .crc = 7})), "'x/b'");
  check_refused(zip_bytes(with({.name = "x/b", .data = "b", .crc = 0})), "without checksums");
  check_refused(zip_bytes(with({.name = "x/b", .data = "b", .method = 8})), "deflate");
  check_refused(zip_bytes(with({.name = "x/b", .data = "b", .method = 93})), "zstd");
  check_refused(zip_bytes(with({.name = "x/b", .data = "b", .flags = 1})), "encrypted");
  check_refused(zip_bytes(with({.name = "x/a", .data = "b"})), "occurs twice");
  check_refused(zip_bytes(with({.name = "x/b", .data = "b", .local_name = "x/c"})), "disagrees");
  check_refused(zip_bytes(with({.name = "x/b", .data = "b", .size = 90'000})), "");
  check_refused(zip_bytes(with({.name = "x/b", .data = "b", .size = ~0u - 1})), "");
  check_refused(zip_bytes(with({.name = "x/b", .data = "b", .size = ~0u - 1, .zip64 = true})), "");
  check_refused(zip_bytes(with({.name = "x/b", .data = "b", .offset = ~0u - 1})), "disagrees");
  for (const char* name : {"../a", "x/../../a", "/etc/passwd", "x/..", "a\\b", ""}) {
    check_refused(zip_bytes(with({.name = name, .data = "b"})), "a name that");
  }
  CHECK_NOTHROW(read(zip_bytes(with({.name = "x/..b/c..", .data = "b"}))));
}

TEST_CASE("headers that disagree") {
  const std::string sound = zip_bytes({{.name = "x/a", .data = "first"}});
  const size_t directory = sound.find("PK\1\2"), end = sound.find("PK\5\6");
  const auto changed = [&](std::initializer_list<size_t> places) {
    std::string bytes = sound;
    for (size_t at : places) bytes[at] = char(bytes[at] + 1);
    return bytes;
  };
  check_refused(changed({8}), "disagrees");                   // method
  check_refused(changed({14}), "disagrees");                  // CRC of the local header alone,
  check_refused(changed({directory + 16}), "disagrees");      // of the directory alone,
  check_refused(changed({14, directory + 16}), "wrong CRC");  // of both
  check_refused(changed({18}), "disagrees");                  // sizes
  check_refused(changed({22}), "disagrees");
  check_refused(changed({30}), "disagrees");  // name
  check_refused(changed({18, directory + 20}), "two sizes");
  check_refused(changed({22, directory + 24}), "two sizes");
  check_refused(changed({end + 4}), "several");  // disk
  check_refused(changed({end + 6}), "several");
  check_refused(changed({end + 8}), "several");  // entries on it
}

TEST_CASE("entries that overlap") {
  // Two entries of the directory for one local header would share its name: so the second lies
  // inside the first one's data, header and all.
  const std::string inner = zip_bytes({{.name = "x/b", .data = "inner"}});
  const size_t header = inner.find("PK\1\2");
  const ZipPart outer = {.name = "x/a", .data = inner.substr(0, header)};
  const std::string sound = zip_bytes({outer});
  const size_t outer_directory = sound.find("PK\1\2", 30 + 3 + outer.data.size());
  std::string second = inner.substr(header, 46 + 3);
  second.replace(42, 4, test::le(uint32_t(30 + 3)));  // where `inner` begins in the file
  const std::string first = sound.substr(outer_directory, 46 + 3);
  const auto archive = [&](const std::string& directory, size_t entries) {
    return sound.substr(0, outer_directory) + directory +
           test::zip_end(entries, directory.size(), outer_directory, false);
  };
  CHECK_NOTHROW(read(archive(first, 1)));
  CHECK_NOTHROW(read(archive(second, 1)));
  check_refused(archive(first + second, 2), "overlaps");
  check_refused(archive(first + first, 2), "twice");
}

TEST_CASE("end records that lie") {
  const std::string sound = zip_bytes(kParts, true);
  const size_t end64 = sound.rfind("PK\6\6"), locator = sound.rfind("PK\6\7");
  const size_t end = sound.rfind("PK\5\6");
  const auto changed = [&](size_t at, const std::string& bytes) {
    return std::string(sound).replace(at, bytes.size(), bytes);
  };
  check_refused(changed(end64 + 32, test::le(uint64_t(1) << 60)), "");         // entries
  check_refused(changed(end64 + 24, test::le(uint64_t(1) << 60)), "several");  // entries here
  check_refused(changed(end64 + 40, test::le(uint64_t(1) << 60)), "outside");  // bytes
  check_refused(changed(end64 + 40, test::le(~uint64_t(0))), "outside");
  check_refused(changed(end64 + 48, test::le(~uint64_t(0))), "outside");  // offset
  check_refused(changed(end64 + 16, test::le(uint32_t(1))), "several");   // disk
  check_refused(changed(end64, "PK\6\5"), "no zip64 end record");
  check_refused(changed(locator + 8, test::le(~uint64_t(0))), "outside");
  check_refused(changed(locator + 16, test::le(uint32_t(2))), "several");
  check_refused(changed(end + 10, test::le(uint16_t(3))), "disagree");
  check_refused(changed(end + 12, test::le(uint32_t(46))), "disagree");

  std::string more = zip_bytes(kParts);  // one entry more than the directory has
  const size_t plain = more.rfind("PK\5\6");
  more.replace(plain + 8, 4, test::le(uint16_t(5)) + test::le(uint16_t(5)));
  check_refused(more, "");
  more.replace(plain + 8, 4, test::le(uint16_t(3)) + test::le(uint16_t(3)));
  check_refused(more, "longer");
  more.replace(plain + 8, 4, test::le(uint16_t(9999)) + test::le(uint16_t(9999)));
  check_refused(more, "more entries");
}
