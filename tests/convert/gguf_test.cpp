// The GGUF reader on sound files and on bad ones.

#include "tools/convert/gguf.h"

#include <functional>

#include <doctest/doctest.h>

#include "tests/gguf_builder.h"
#include "tests/support.h"

using namespace oq;
using namespace oq::convert;
using test::GgufBuilder;

namespace {

std::span<const std::byte> bytes_of(const std::string& s) { return std::as_bytes(std::span(s)); }

/// A bit of everything, in under a kilobyte.
GgufBuilder small() {
  GgufBuilder g;
  g.set_string("general.architecture", "llama");
  g.set_u32("general.alignment", 32);
  g.set_bool("flag", true);
  g.set_f32("half", 0.5f);
  g.set_strings("words", {"a", "", "longer"});
  g.set_numbers<int32_t>("numbers", GgufBuilder::i32, {-1, 2, 3});
  g.set_numbers<uint64_t>("big", GgufBuilder::u64, {~uint64_t(0)});
  g.add_tensor("a", {4, 2}, 0, std::string(32, 'x'));
  g.add_tensor("b", {32}, 8, std::string(34, 'y'));
  return g;
}

/// Everything a converter would ask of a file.
void use(const std::string& bytes) {
  const GgufFile file(bytes_of(bytes), "test.gguf");
  for (const char* key : {"general.architecture", "words", "numbers", "flag", "half", "big"}) {
    switch (file.kind(key)) {
      case GgufFile::ValueKind::string:
        file.get<std::string_view>(key);
        break;
      case GgufFile::ValueKind::number_array:
        file.get<std::vector<double>>(key);
        break;
      default:
        break;
    }
  }
  for (const GgufTensor& t : file.tensors()) {
    std::vector<float> row(t.rows() * t.cols());
    t.type->dequantize(t.data.data(), row.size() / t.type->block_elements, row.data());
  }
}

void check_refused(const std::string& bytes, const char* says) {
  CAPTURE(says);
  try {
    GgufFile(bytes_of(bytes), "test.gguf");
    FAIL_CHECK("was not refused");
  } catch (const Error& e) {
    CAPTURE(e.what());
    CHECK(std::string(e.what()).find(says) != std::string::npos);
    CHECK(std::string(e.what()).find("test.gguf") != std::string::npos);
  }
}

}  // namespace

TEST_CASE("values and tensors of a sound file") {
  const std::string bytes = small().bytes();
  const GgufFile file(bytes_of(bytes), "test.gguf");
  CHECK(file.get<std::string_view>("general.architecture") == "llama");
  CHECK(file.get<int64_t>("general.alignment") == 32);
  CHECK(file.get<bool>("flag"));
  CHECK(file.get<double>("half") == 0.5);
  CHECK(file.get<double>("general.alignment") == 32.0);
  CHECK(file.get<std::vector<std::string_view>>("words") ==
        std::vector<std::string_view>{"a", "", "longer"});
  CHECK(file.get<std::vector<int64_t>>("numbers") == std::vector<int64_t>{-1, 2, 3});
  CHECK(file.get_or<int64_t>("absent", 7) == 7);
  CHECK_THROWS_AS(file.get<int64_t>("absent"), Error);
  CHECK_THROWS_AS(file.get<int64_t>("half"), Error);
  CHECK_THROWS_AS(file.get<int64_t>("numbers"), Error);
  CHECK_THROWS_AS(file.get<std::vector<int64_t>>("flag"), Error);
  CHECK_THROWS_AS(file.get<std::vector<int64_t>>("big"), Error);  // beyond int64

  REQUIRE(file.tensors().size() == 2);
  const GgufTensor* a = file.find("a");
  REQUIRE(a != nullptr);
  CHECK(a->cols() == 4);
  CHECK(a->rows() == 2);
  CHECK(char(a->data[0]) == 'x');
  CHECK(file.find("b")->type->name == "Q8_0");
  CHECK(file.find("c") == nullptr);
}

TEST_CASE("version 2 is read, others are refused") {
  GgufBuilder g = small();
  g.version = 2;
  CHECK_NOTHROW(use(g.bytes()));
  for (uint32_t version : {0u, 1u, 4u}) {
    g.version = version;
    check_refused(g.bytes(), "unknown GGUF version");
  }
  g.version = 3u << 24;
  check_refused(g.bytes(), "big-endian");
}

TEST_CASE("truncated at every byte") {
  const std::string bytes = small().bytes();
  // The data of the last tensor ends before the padding does.
  const size_t needed = bytes.size() - 30;
  for (size_t n = 0; n < needed; ++n) {
    CAPTURE(n);
    CHECK_THROWS_AS(use(bytes.substr(0, n)), Error);
  }
  CHECK_NOTHROW(use(bytes.substr(0, needed)));
}

TEST_CASE("flipped bits never do worse than an error") {
  const std::string sound = small().bytes();
  for (size_t i = 0; i < sound.size(); ++i) {
    for (int mask : {0x01, 0x02, 0x08, 0x40, 0x80, 0x7F, 0xFF}) {
      std::string bytes = sound;
      bytes[i] = char(bytes[i] ^ mask);
      try {
        use(bytes);
      } catch (const Error&) {
      }
    }
  }
}

TEST_CASE("files made to hurt") {
  const auto with = [](const std::function<void(GgufBuilder&)>& change) {
    GgufBuilder g = small();
    change(g);
    return g.bytes();
  };
  const std::string data(64, 'z');
  constexpr uint64_t kHuge = uint64_t(1) << 62;
  const auto length = [](uint64_t n) { return std::string(reinterpret_cast<char*>(&n), 8); };

  check_refused("", "not a GGUF file");
  check_refused("GGML....", "not a GGUF file");
  check_refused(with([](auto& g) { g.n_tensors = kHuge; }), "tensor count");
  check_refused(with([](auto& g) { g.n_tensors = ~uint64_t(0); }), "tensor count");
  check_refused(with([](auto& g) { g.n_entries = kHuge; }), "count is larger");
  check_refused(with([&](auto& g) { g.set_raw("s", GgufBuilder::string, length(kHuge)); }),
                "ends in the middle");
  check_refused(with([&](auto& g) {
                  g.set_raw("a", GgufBuilder::array, std::string("\4\0\0\0", 4) + length(kHuge));
                }),
                "count is larger");
  check_refused(with([&](auto& g) {
                  g.set_raw("a", GgufBuilder::array, std::string("\x9\0\0\0", 4) + length(1));
                }),
                "array of arrays");
  check_refused(with([](auto& g) { g.set_raw("t", 13, ""); }), "unknown type");
  check_refused(with([](auto& g) { g.set_raw("t", 0xFFFFFFFF, ""); }), "unknown type");
  check_refused(with([](auto& g) { g.set_u32("flag", 1); }), "occurs twice");
  check_refused(with([&](auto& g) { g.add_tensor("a", {4}, 0, data); }), "occurs twice");
  check_refused(with([&](auto& g) { g.add_tensor("d", {}, 0, data); }), "number of dimensions");
  check_refused(with([&](auto& g) {
                  g.add_tensor("d", {1, 1, 1, 1, 1}, 0, data);
                }),
                "number of dimensions");
  check_refused(with([&](auto& g) { g.add_tensor("d", {0, 4}, 0, data); }), "impossible dimension");
  check_refused(with([&](auto& g) {
                  g.add_tensor("d", {kHuge, 16}, 0, data);
                }),
                "impossible dimension");
  check_refused(with([&](auto& g) { g.add_tensor("d", {kHuge}, 0, data); }), "beyond the end");
  check_refused(with([&](auto& g) {
                  g.add_tensor("d", {uint64_t(1) << 61, 2}, 0, data);
                }),
                "beyond the end");
  check_refused(with([&](auto& g) { g.add_tensor("d", {31}, 8, data); }), "not whole Q8_0 blocks");
  check_refused(with([&](auto& g) { g.add_tensor("d", {32}, 16, data); }), "cannot be read");
  check_refused(with([&](auto& g) { g.add_tensor("d", {32}, 4, data); }), "cannot be read");
  check_refused(with([](auto& g) { g.add_tensor_at("d", {4}, 0, 8); }), "not aligned");
  check_refused(with([](auto& g) { g.add_tensor_at("d", {4}, 0, 0); }), "overlap");
  check_refused(with([](auto& g) { g.add_tensor_at("d", {4}, 0, 1 << 20); }), "beyond the end");
  check_refused(with([](auto& g) { g.add_tensor_at("d", {4}, 0, ~uint64_t(0) - 31); }),
                "beyond the end");
  for (uint32_t alignment : {0u, 4u, 24u, 1u << 31}) {
    GgufBuilder g;
    g.set_u32("general.alignment", alignment);
    check_refused(g.bytes(), "general.alignment");
  }
}

TEST_CASE("another alignment is heeded") {
  GgufBuilder g;
  g.alignment = 64;
  g.set_u32("general.alignment", 64);
  g.add_tensor("a", {1}, 0, std::string("\0\0\x80\x3F", 4));
  g.add_tensor("b", {1}, 0, std::string("\0\0\0\x40", 4));
  const std::string bytes = g.bytes();
  const GgufFile file(bytes_of(bytes), "test.gguf");
  float value = 0;
  file.find("b")->type->dequantize(file.find("b")->data.data(), 1, &value);
  CHECK(value == 2.0f);
}
