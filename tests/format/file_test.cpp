#include <cmath>
#include <cstddef>
#include <cstring>
#include <functional>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "format/crc32c.h"
#include "format/file_layout.h"
#include "tests/support.h"

using namespace oq;
using test::TempDir;

namespace {

std::span<const std::byte> bytes_of(const std::vector<float>& v) {
  return std::as_bytes(std::span(v));
}

PackedBuilder packed_tensor(const Packing& packing, uint64_t rows, uint64_t cols) {
  PackedBuilder b(rows, cols, packing);
  std::vector<uint32_t> weak;
  for (uint32_t i = 0; i < packing.weak_columns; ++i) weak.push_back(3 * i + 1);
  b.set_weak_indices(weak);
  for (uint64_t r = 0; r < rows; ++r) {
    for (uint64_t g = 0; g < b.layout().groups; ++g) b.set_scale(r, g, to_f16(0.25f));
  }
  return b;
}

/// A file with one tensor of each kind, and metadata of each type.
void write_sample(const std::filesystem::path& path) {
  Writer w(path, 4, 512);
  w.metadata.set("a.bool", true);
  w.metadata.set("a.integer", int64_t(-7));
  w.metadata.set("a.number", 0.1);
  w.metadata.set("a.string", std::string("text"));
  w.metadata.set("a.integers", std::vector<int64_t>{1, -2});
  w.metadata.set("a.numbers", std::vector<double>{0.5});
  w.metadata.set("a.strings", std::vector<std::string>{"x", ""});
  w.add({.name = "vector", .kind = Kind::f32, .rows = 1, .cols = 3}, bytes_of({1, 2, 3}));
  const Packing packing{.bits = 3, .group = 32, .weak_columns = 2};
  const PackedBuilder b = packed_tensor(packing, 9, 40);
  w.add({.name = "packed", .kind = Kind::packed, .rows = 9, .cols = 40, .packing = packing},
        b.bytes());
  w.begin({.name = "blob", .kind = Kind::bytes, .rows = 1, .cols = 5});
  w.write(std::as_bytes(std::span("hello", 2)));
  w.write(std::as_bytes(std::span("llo", 3)));
  w.end();
  w.finish();
}

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

void open_and_verify(const std::filesystem::path& path) { File::open(path)->verify(); }

/// The file with its header changed and sealed again.
std::string with_header(std::string bytes, const std::function<void(disk::Header&)>& change) {
  disk::Header h;
  std::memcpy(&h, bytes.data(), sizeof(h));
  change(h);
  h.header_crc = crc32c({reinterpret_cast<const std::byte*>(&h), sizeof(h) - 4});
  std::memcpy(bytes.data(), &h, sizeof(h));
  return bytes;
}

/// The file with one directory entry changed, and both checksums made right again.
std::string with_entry(std::string bytes, size_t index,
                       const std::function<void(disk::Entry&)>& change) {
  disk::Header h;
  std::memcpy(&h, bytes.data(), sizeof(h));
  char* at = bytes.data() + h.directory_offset + index * sizeof(disk::Entry);
  disk::Entry e;
  std::memcpy(&e, at, sizeof(e));
  change(e);
  std::memcpy(at, &e, sizeof(e));
  const uint32_t crc =
      crc32c(std::as_bytes(std::span(bytes))
                 .subspan(h.directory_offset, h.tensor_count * sizeof(disk::Entry)));
  return with_header(std::move(bytes), [&](disk::Header& header) { header.directory_crc = crc; });
}

}  // namespace

TEST_CASE("a file gives back what was written, aligned and in order") {
  TempDir dir;
  write_sample(dir / "m.oq");
  const auto file = File::open(dir / "m.oq");
  file->verify();
  CHECK(file->metadata().get<bool>("a.bool"));
  CHECK(file->metadata().get<int64_t>("a.integer") == -7);
  CHECK(file->metadata().get<double>("a.number") == 0.1);
  CHECK(file->metadata().get<std::vector<std::string>>("a.strings")[0] == "x");
  CHECK(file->tensors().size() == 3);
  for (const TensorInfo& t : file->tensors()) CHECK(t.offset % 256 == 0);
  CHECK(file->tensors()[0].offset % 4096 == 0);
  CHECK(file->bytes() % 4096 == 0);
  const auto blob = file->data(file->tensor("blob"));
  CHECK(std::string_view(reinterpret_cast<const char*>(blob.data()), blob.size()) == "hello");
  CHECK(file->packed(file->tensor("packed")).scale(8, 1) == 0.25f);
  CHECK(file->find("nothing") == nullptr);
  CHECK(message_of([&] { file->tensor("nothing"); }).find("nothing") != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(dir / "m.oq.part"));
}

TEST_CASE("a file copied to huge pages is the same file, under the same checks") {
  TempDir dir;
  write_sample(dir / "m.oq");
  const auto mapped = File::open(dir / "m.oq"), copied = File::open(dir / "m.oq", Pages::huge);
  copied->verify();
  CHECK(mapped->pages() == Pages::ordinary);
  CHECK(copied->pages() == Pages::huge);
  REQUIRE(copied->tensors().size() == mapped->tensors().size());
  for (const TensorInfo& t : mapped->tensors()) {
    const auto a = mapped->data(t), b = copied->data(copied->tensor(t.name));
    CHECK(std::equal(a.begin(), a.end(), b.begin(), b.end()));
  }
  // It is a copy: what happens to the file does not reach it.
  std::filesystem::resize_file(dir / "m.oq", 100);
  CHECK(copied->packed(copied->tensor("packed")).scale(8, 1) == 0.25f);
  CHECK(message_of([&] { File::open(dir / "m.oq", Pages::huge); }).find("m.oq") !=
        std::string::npos);
  std::filesystem::resize_file(dir / "m.oq", uint64_t(1) << 43);  // a hole: more than any memory
  CHECK(message_of([&] { File::open(dir / "m.oq", Pages::huge); }).find("fit this machine") !=
        std::string::npos);
}

TEST_CASE("equal contents are equal bytes, and those of this version are frozen") {
  TempDir dir;
  write_sample(dir / "a.oq");
  write_sample(dir / "b.oq");
  const std::string a = test::read_file(dir / "a.oq");
  CHECK(a == test::read_file(dir / "b.oq"));
  CHECK(crc32c(std::as_bytes(std::span(a))) == 0x32CFCE74u);
}

TEST_CASE("truncated at every byte, a file is refused") {
  TempDir dir;
  write_sample(dir / "m.oq");
  const auto size = std::filesystem::file_size(dir / "m.oq");
  for (auto n = size; n-- > 0;) {
    std::filesystem::resize_file(dir / "m.oq", n);
    const std::string message = message_of([&] { File::open(dir / "m.oq"); });
    REQUIRE(message.find("m.oq") != std::string::npos);
  }
}

TEST_CASE("a flipped bit anywhere is refused at opening or by verify") {
  TempDir dir;
  write_sample(dir / "m.oq");
  const std::string good = test::read_file(dir / "m.oq");
  std::string bad = good;
  for (size_t i = 0; i < good.size(); ++i) {
    bad[i] = char(good[i] ^ (1 << (i % 8)));
    test::write_file(dir / "bad.oq", bad);
    REQUIRE_MESSAGE(!message_of([&] { open_and_verify(dir / "bad.oq"); }).empty(),
                    "byte " << i << " may change unnoticed");
    bad[i] = good[i];
  }
}

TEST_CASE("hand-made bad files are refused, each with the reason") {
  TempDir dir;
  write_sample(dir / "m.oq");
  const std::string good = test::read_file(dir / "m.oq");
  const auto refuses = [&](const std::string& bytes, const char* reason) {
    test::write_file(dir / "bad.oq", bytes);
    const std::string message = message_of([&] { File::open(dir / "bad.oq"); });
    CAPTURE(message);
    CAPTURE(reason);
    CHECK(message.find(reason) != std::string::npos);
  };
  using H = disk::Header;
  using E = disk::Entry;
  refuses("", "not a .oq file");
  refuses("GGUF" + good, "magic");
  refuses(with_header(good, [](H& h) { h.version_major = 1; }), "newer OQ");
  refuses(with_header(good, [](H& h) { h.file_bytes += 4096; }), "wrong size");
  refuses(good + std::string(4096, '\0'), "wrong size");
  refuses(with_header(good, [](H& h) { h.metadata_offset += 8; }), "header");
  refuses(with_header(good, [](H& h) { h.metadata_bytes = 0xFFFFFFFF; }), "header");
  refuses(with_header(good, [](H& h) { h.metadata_capacity = 0xFFFFFFF0; }), "header");
  refuses(with_header(good, [](H& h) { h.directory_offset = ~uint64_t(0) - 64; }), "header");
  refuses(with_header(good, [](H& h) { h.tensor_count = 0xFFFFFFFF; }), "header");
  refuses(with_header(good, [](H& h) { h.reserved[1] = 1; }), "header");
  refuses(with_header(good, [](H& h) { h.metadata_crc ^= 1; }), "checksum");
  refuses(with_entry(good, 0, [](E& e) { e.offset = ~uint64_t(0) & ~uint64_t(255); }), "vector");
  refuses(with_entry(good, 0, [](E& e) { e.offset = 0; }), "vector");
  refuses(with_entry(good, 0, [](E& e) { e.offset += 8; }), "vector");
  refuses(with_entry(good, 0, [](E& e) { e.bytes += 1; }), "vector");
  refuses(with_entry(good, 0,
                     [](E& e) {
                       e.cols = uint64_t(1) << 62;
                       e.rows = 16;
                     }),
          "vector");
  refuses(with_entry(good, 0, [](E& e) { e.cols = 0; }), "vector");
  refuses(with_entry(good, 0, [](E& e) { e.kind = 9; }), "entry 0");
  refuses(with_entry(good, 0, [](E& e) { e.reserved[3] = 1; }), "entry 0");
  refuses(with_entry(good, 0, [](E& e) { e.reserved[20] = 1; }), "entry 0");  // the last byte
  refuses(with_entry(good, 0, [](E& e) { std::memset(e.name, 'a', sizeof(e.name)); }), "entry 0");
  refuses(with_entry(good, 0, [](E& e) { std::strncpy(e.name, "blob", sizeof(e.name)); }),
          "one name");
  refuses(with_entry(good, 1, [](E& e) { e.bits = 9; }), "bad.oq, tensor 'packed': no such code");
  refuses(with_entry(good, 1, [](E& e) { e.group = 33; }), "bad.oq, tensor 'packed': bad group");
  refuses(with_entry(good, 0, [](E& e) { std::memset(e.name, 0, sizeof(e.name)); }), "a name");
  refuses(with_entry(good, 1, [](E& e) { e.zero_mode = 7; }), "zero mode");
  refuses(with_entry(good, 1, [](E& e) { e.weak_columns = 41; }), "weak");
  refuses(with_entry(good, 1, [](E& e) { e.rows = uint64_t(1) << 60; }), "large");
  refuses(with_entry(good, 2,
                     [&](E& e) { e.offset = File::open(dir / "m.oq")->tensor("packed").offset; }),
          "blob");
}

TEST_CASE("a byte of a directory entry that means nothing for its tensor is refused") {
  TempDir dir;
  write_sample(dir / "m.oq");
  const std::string good = test::read_file(dir / "m.oq");
  const auto refuses = [&](size_t entry, size_t byte, uint8_t value) {
    test::write_file(dir / "bad.oq", with_entry(good, entry, [&](disk::Entry& e) {
                       reinterpret_cast<uint8_t*>(&e)[byte] = value;
                     }));
    const std::string message = message_of([&] { File::open(dir / "bad.oq"); });
    const std::string wanted = fmt::format("bad.oq, entry {}: directory entry is not one", entry);
    CAPTURE(byte);
    CAPTURE(message);
    CHECK(message.find(wanted) != std::string::npos);
    CHECK(message.find(fmt::format("at byte {}, found {}", byte, value)) != std::string::npos);
  };
  for (size_t byte = std::strlen("vector") + 1; byte < sizeof(disk::Entry::name); ++byte) {
    refuses(0, byte, 'x');  // a second name behind the first one's NUL
  }
  for (size_t byte = offsetof(disk::Entry, group); byte < sizeof(disk::Entry); ++byte) {
    if (byte != offsetof(disk::Entry, kind)) refuses(0, byte, 1);  // f32 has no packing
  }
  refuses(1, offsetof(disk::Entry, five_levels), 2);  // of the packed one: bools, reserved bytes
  refuses(1, offsetof(disk::Entry, weak_bf16), 2);
  for (size_t i = 0; i < sizeof(disk::Entry::reserved); ++i) {
    refuses(1, offsetof(disk::Entry, reserved) + i, 255);
  }
}

TEST_CASE("a byte between the sections of a packed tensor is refused by verify") {
  TempDir dir;
  write_sample(dir / "m.oq");
  const std::string good = test::read_file(dir / "m.oq");
  const auto file = File::open(dir / "m.oq");
  const TensorInfo& t = file->tensor("packed");
  const PackedLayout l = file->packed(t).layout();
  const uint64_t zeros_end = l.zeros_offset + l.panels * l.groups * l.zero_bytes;
  const uint64_t index_end = l.weak_index_offset + 2 * sizeof(uint32_t);
  for (const uint64_t at :
       {zeros_end, zeros_end + 7, l.weak_index_offset - 1, index_end, l.weak_offset - 1}) {
    CAPTURE(at);
    std::string bytes = good;
    bytes[t.offset + at] = 1;
    const uint32_t crc = crc32c(std::as_bytes(std::span(bytes)).subspan(t.offset, t.bytes));
    test::write_file(dir / "bad.oq", with_entry(bytes, 1, [&](disk::Entry& e) { e.crc = crc; }));
    const std::string message = message_of([&] { File::open(dir / "bad.oq")->verify(); });
    CAPTURE(message);
    CHECK(message.find("tensor 'packed': bytes that hold nothing are not zero") !=
          std::string::npos);
    CHECK(message.find(std::to_string(t.offset + at)) != std::string::npos);
  }
}

TEST_CASE("weak columns that are no columns are refused, though they are tensor bytes") {
  TempDir dir;
  write_sample(dir / "m.oq");
  std::string bytes = test::read_file(dir / "m.oq");
  const auto file = File::open(dir / "m.oq");
  const TensorInfo& t = file->tensor("packed");
  const uint64_t at = t.offset + file->packed(t).layout().weak_index_offset;
  for (const uint32_t index : {40u, 0xFFFFFFFFu, 1u}) {  // beyond, far beyond, not ascending
    std::memcpy(bytes.data() + at + 4, &index, 4);
    test::write_file(dir / "bad.oq", bytes);
    CHECK(message_of([&] { File::open(dir / "bad.oq"); }).find("weak") != std::string::npos);
  }
}

TEST_CASE("a scale that is not finite is refused by verify") {
  TempDir dir;
  const Packing packing{.bits = 4, .group = 32};
  PackedBuilder b = packed_tensor(packing, 8, 64);
  b.set_scale(3, 1, f16{0x7C00});
  Writer w(dir / "m.oq", 1);
  w.add({.name = "t", .kind = Kind::packed, .rows = 8, .cols = 64, .packing = packing}, b.bytes());
  const std::string message = message_of([&] { w.finish(); });
  CHECK(message.find("row 3, group 1") != std::string::npos);
}

TEST_CASE("a writer that does not finish leaves what was there") {
  TempDir dir;
  write_sample(dir / "m.oq");
  const std::string before = test::read_file(dir / "m.oq");
  {
    Writer w(dir / "m.oq", 1);
    w.add({.name = "t", .kind = Kind::f32, .rows = 1, .cols = 1}, bytes_of({1}));
    CHECK_THROWS_AS(Writer(dir / "m.oq", 1), Error);  // two writers of one file
    CHECK_THROWS_AS(w.add({.name = "u", .kind = Kind::f32, .rows = 1, .cols = 1}, bytes_of({1})),
                    Error);  // no room in the directory
  }
  CHECK(test::read_file(dir / "m.oq") == before);
  CHECK_FALSE(std::filesystem::exists(dir / "m.oq.part"));
}

TEST_CASE("a writer holds its caller to the sizes") {
  TempDir dir;
  Writer w(dir / "m.oq", 4, 64);
  w.begin({.name = "t", .kind = Kind::f32, .rows = 1, .cols = 2});
  CHECK_THROWS_AS(w.end(), Error);
  CHECK_THROWS_AS(w.write(bytes_of({1, 2, 3})), Error);
  w.write(bytes_of({1, 2}));
  w.end();
  CHECK_THROWS_AS(w.begin({.name = std::string(56, 'n'), .kind = Kind::f32, .cols = 1}), Error);
  CHECK_THROWS_AS(w.begin({.name = "", .kind = Kind::f32, .cols = 1}), Error);
  const Packing odd{.bits = 4, .group = 40};
  const std::string message =
      message_of([&] { w.begin({.name = "p", .kind = Kind::packed, .cols = 80, .packing = odd}); });
  CHECK(message.find("m.oq, tensor 'p': bad group") != std::string::npos);
  w.metadata.set("k", std::string(100, 'v'));
  CHECK(message_of([&] { w.finish(); }).find("metadata") != std::string::npos);
  CHECK_THROWS_AS(Writer(dir / "no" / "such" / "folder.oq", 1), Error);
  CHECK_THROWS_AS(Writer(dir.path(), 1), Error);
}

TEST_CASE("metadata is replaced in place, again and again, and the tensors stay") {
  TempDir dir;
  write_sample(dir / "m.oq");
  const auto size = std::filesystem::file_size(dir / "m.oq");
  for (int i = 0; i < 3; ++i) {
    Metadata m = File::open(dir / "m.oq")->metadata();
    m.set("a.string", "edit " + std::to_string(i));
    rewrite_metadata(dir / "m.oq", m);
    const auto file = File::open(dir / "m.oq");
    file->verify();
    CHECK(file->metadata() == m);
    CHECK(file->bytes() == size);
  }
  Metadata m;
  m.set("k", std::string(1000, 'v'));
  CHECK_THROWS_AS(rewrite_metadata(dir / "m.oq", m), Error);
  CHECK(File::open(dir / "m.oq")->metadata().get<std::string>("a.string") == "edit 2");
}

TEST_CASE("metadata survives encoding, and its text form reads back") {
  Metadata m;
  m.set("list", std::vector<int64_t>{5, 6});
  m.set("n", 0.1);
  const auto bytes = m.encode();
  CHECK(Metadata::decode(bytes, "x") == m);
  for (size_t n = 0; n < bytes.size(); ++n) {
    CHECK_THROWS_AS(Metadata::decode(std::span(bytes).first(n), "x"), Error);
  }
  for (const auto& [key, value] : m) {
    CHECK(Metadata::from_text(Metadata::to_text(value), value) == value);
  }
  CHECK_THROWS_AS(m.get<bool>("n"), Error);
  CHECK_THROWS_AS(m.get<bool>("missing"), Error);
  CHECK_THROWS_AS(Metadata::from_text("maybe", Metadata::Value(true)), Error);
  CHECK_THROWS_AS(Metadata::from_text("1x", Metadata::Value(int64_t(1))), Error);
}
