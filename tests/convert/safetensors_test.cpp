// The safetensors reader on sound files and on bad ones.

#include "tools/tensor_files/safetensors.h"

#include <doctest/doctest.h>

#include "format/error.h"
#include "tests/support.h"

using namespace oq;

namespace {

std::string file_of(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header +
         std::string(data_bytes, 'd');
}

std::vector<SafeTensor> read(const std::string& bytes) {
  return read_safetensors(std::as_bytes(std::span(bytes)), "test.safetensors");
}

void check_refused(const std::string& bytes, const char* says) {
  CAPTURE(says);
  try {
    read(bytes);
    FAIL_CHECK("was not refused");
  } catch (const Error& e) {
    CAPTURE(e.what());
    CHECK(std::string(e.what()).find(says) != std::string::npos);
    CHECK(std::string(e.what()).find("test.safetensors") != std::string::npos);
  }
}

const std::string kSound =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F16","shape":[2,3],"data_offsets":[8,20]},)"
    R"("a":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}   )";

}  // namespace

TEST_CASE("tensors of a sound file come in the order of their data") {
  const auto tensors = read(file_of(kSound, 20));
  REQUIRE(tensors.size() == 2);
  CHECK(tensors[0].name == "a");
  CHECK(tensors[0].shape.empty());
  CHECK(tensors[0].data.size() == 8);
  CHECK(tensors[1].dtype == "F16");
  CHECK(tensors[1].shape == std::vector<uint64_t>{2, 3});
  CHECK(tensors[1].data.size() == 12);
  CHECK(read(file_of("{}", 0)).empty());
}

TEST_CASE("safetensors truncated at every byte") {
  const std::string bytes = file_of(kSound, 20);
  for (size_t n = 0; n < bytes.size(); ++n) {
    CAPTURE(n);
    CHECK_THROWS_AS(read(bytes.substr(0, n)), Error);
  }
}

TEST_CASE("flipped bits in safetensors never do worse than an error") {
  const std::string sound = file_of(kSound, 20);
  for (size_t i = 0; i < sound.size(); ++i) {
    for (int mask : {0x01, 0x02, 0x08, 0x10, 0x40, 0x80, 0xFF}) {
      std::string bytes = sound;
      bytes[i] = char(bytes[i] ^ mask);
      try {
        for (const SafeTensor& t : read(bytes)) CHECK(t.data.size() <= bytes.size());
      } catch (const Error&) {
      }
    }
  }
}

TEST_CASE("safetensors made to hurt") {
  const auto one = [](const std::string& fields) { return file_of("{\"a\":{" + fields + "}}", 8); };
  const std::string dtype = R"("dtype":"F32",)", shape = R"("shape":[2],)";
  const std::string offsets = R"("data_offsets":[0,8])";
  CHECK_NOTHROW(read(one(dtype + shape + offsets)));

  check_refused(file_of("[]", 0), "begin with '{'");
  check_refused(file_of("", 0), "begin with '{'");
  check_refused(std::string(8, '\xFF') + "{}", "too long");
  check_refused(file_of("{", 0), "not valid JSON");
  check_refused(file_of("{} x", 0), "not valid JSON");
  check_refused(file_of("{\"\xFF\":{}}", 0), "not valid JSON");
  check_refused(file_of("{" + std::string(4000, '{'), 0), "not valid JSON");
  check_refused(file_of("{\"a\":" + std::string(4000, '['), 0), "holds a list");
  check_refused(file_of(R"({"a":{"dtype":{"x":1}}})", 0), "holds an object");
  check_refused(file_of(R"({"a":1})", 0), "holds a number");
  check_refused(file_of(R"({"a":null})", 0), "holds null");
  check_refused(file_of(R"({"__metadata__":{"x":1}})", 0), "holds a number");
  check_refused(file_of("{}", 4), "no tensor owns");
  check_refused(one(shape + offsets), "lacks dtype");
  check_refused(one(dtype + offsets), "lacks dtype");
  check_refused(one(dtype + shape + R"("extra":[1])"), "not a field");
  check_refused(one(dtype + dtype + shape + offsets), "occurs twice");
  check_refused(one(R"("dtype":"F33",)" + shape + offsets), "dtype and shape");
  check_refused(one(R"("dtype":1,)" + shape + offsets), "holds a number");
  check_refused(one(dtype + R"("shape":[3],)" + offsets), "dtype and shape");
  check_refused(one(dtype + R"("shape":[-2],)" + offsets), "negative");
  check_refused(one(dtype + R"("shape":[2.0],)" + offsets), "fraction");
  check_refused(one(dtype + R"("shape":[[2]],)" + offsets), "holds a list");
  check_refused(one(dtype + R"("shape":[4611686018427387904,4],)" + offsets), "dtype and shape");
  check_refused(one(dtype + R"("shape":[18446744073709551616],)" + offsets), "fraction");
  check_refused(one(dtype + shape + R"("data_offsets":[0])"), "pair");
  check_refused(one(dtype + shape + R"("data_offsets":[0,8,8])"), "pair");
  check_refused(one(dtype + shape + R"("data_offsets":[8,0])"), "hole");
  check_refused(one(dtype + shape + R"("data_offsets":[4,12])"), "hole");
  check_refused(one(dtype + R"("shape":[3],"data_offsets":[0,12])"), "beyond the end");
  check_refused(one(dtype + R"("shape":[1],"data_offsets":[0,4])"), "no tensor owns");

  const std::string first = R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)";
  check_refused(file_of(first + R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12),
                "overlaps");
  check_refused(file_of(first + R"("b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}})", 16),
                "hole");
  check_refused(file_of(first + R"("a":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})", 12),
                "twice");
}

TEST_CASE("what is written is read again, names that are no UTF-8 with a mark in their place") {
  const test::TempDir dir;
  const std::vector<float> values = {1, 2};
  const SafeTensor tensor = {
      .name = "a", .dtype = "F32", .shape = {1, 2}, .data = std::as_bytes(std::span(values))};
  write_safetensors(dir / "x.safetensors", std::span(&tensor, 1), {{"text", "caf\xE9.txt"}});
  const std::string bytes = test::read_file(dir / "x.safetensors");
  SafeMetadata metadata;
  const auto tensors = read_safetensors(std::as_bytes(std::span(bytes)), "x", &metadata);
  REQUIRE(tensors.size() == 1);
  CHECK(tensors[0].name == "a");
  CHECK(std::equal(tensor.data.begin(), tensor.data.end(), tensors[0].data.begin()));
  CHECK(metadata.at("text") == "caf\uFFFD.txt");
}
