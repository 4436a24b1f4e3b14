// A file in memory is the file that a Writer would have written.

#include "format/memory_file.h"

#include <cstring>
#include <functional>

#include <doctest/doctest.h>

#include "tests/support.h"

using namespace oq;

namespace {

Metadata some_metadata() {
  Metadata m;
  m.set("a.string", std::string("text"));
  m.set("a.numbers", std::vector<double>{0.5, 2});
  return m;
}

std::vector<TensorInfo> some_tensors() {
  const Packing packing{.bits = 3, .group = 32, .weak_columns = 2};
  return {{.name = "vector", .kind = Kind::f32, .rows = 1, .cols = 3},
          {.name = "packed", .kind = Kind::packed, .rows = 9, .cols = 40, .packing = packing},
          {.name = "blob", .kind = Kind::bytes, .rows = 1, .cols = 4096}};
}

/// Weak columns 0 and 1, scales of 1: sound, and no byte the same as its neighbours.
void fill(const TensorInfo& t, std::span<std::byte> data) {
  if (t.kind != Kind::packed) {
    for (size_t i = 0; i < data.size(); ++i) data[i] = std::byte(i * 7 + 1);
    return;
  }
  PackedBuilder b(t.rows, t.cols, t.packing);
  const uint32_t weak[] = {0, 1};
  b.set_weak_indices(weak);
  for (uint64_t r = 0; r < t.rows; ++r) {
    for (uint64_t g = 0; g < b.layout().groups; ++g) b.set_scale(r, g, to_f16(1));
  }
  std::memcpy(data.data(), b.bytes().data(), data.size());
}

std::shared_ptr<const File> make(std::vector<TensorInfo> tensors) {
  MemoryFile memory("in memory", some_metadata(), std::move(tensors));
  memory.populate(0, memory.bytes());
  for (size_t i = 0; i < memory.tensors().size(); ++i) {
    fill(memory.tensors()[i], memory.data(i));
    memory.seal(i);
  }
  return memory.finish();
}

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a file in memory is byte for byte what a writer puts on disk") {
  const test::TempDir dir;
  const auto file = make(some_tensors());
  file->verify();
  Writer writer(dir / "m.oq", some_tensors().size());
  writer.metadata = some_metadata();
  for (const TensorInfo& t : some_tensors()) {
    std::vector<std::byte> data(t.expected_bytes());
    fill(t, data);
    writer.add(t, data);
  }
  writer.finish();
  const std::string written = test::read_file(dir / "m.oq");
  const TensorInfo& first = file->tensors().front();
  const std::byte* start = file->data(first).data() - first.offset;
  REQUIRE(written.size() == file->bytes());
  CHECK(std::memcmp(written.data(), start, written.size()) == 0);
  CHECK(file->path() == "in memory");
  CHECK(file->metadata() == some_metadata());
}

TEST_CASE("it is opened through the checks of every file") {
  auto twice = some_tensors();
  twice.push_back(twice.front());
  CHECK(message_of([&] { make(twice); }).find("two tensors have one name") != std::string::npos);
  MemoryFile unfilled("in memory", {}, some_tensors());  // weak columns 0 and 0
  CHECK(message_of([&] { unfilled.finish(); }).find("weak columns") != std::string::npos);
}

TEST_CASE("what cannot be stored is refused") {
  const auto refuses = [](const TensorInfo& t, const char* reason) {
    const std::string message = message_of([&] { MemoryFile("in memory", {}, {t}); });
    CAPTURE(message);
    CHECK(message.find("in memory") == 0);
    CHECK(message.find(reason) != std::string::npos);
  };
  refuses({.name = "", .kind = Kind::f32, .cols = 1}, "name");
  refuses({.name = std::string(56, 'x'), .kind = Kind::f32, .cols = 1}, "name");
  refuses({.name = "big", .kind = Kind::bytes, .cols = uint64_t(1) << 62}, "memory");
  refuses({.name = "big", .kind = Kind::bytes, .cols = ~uint64_t(0)}, "larger than any file");
  CHECK(message_of([] {
          MemoryFile("in memory", {}, {{.name = "empty", .kind = Kind::f32, .cols = 0}});
        }).find("no usable size") != std::string::npos);
}

TEST_CASE("available memory is some, and less than all addresses") {
  CHECK(available_memory() > 0);
  CHECK(available_memory() < uint64_t(1) << 48);
}
