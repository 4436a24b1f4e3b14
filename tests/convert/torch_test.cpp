// Files of torch.save: those that torch wrote against what torch finds in them, whole folders of
// them converted, and folders that are wrong.

#include <cstring>
#include <functional>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "format/half.h"
#include "tests/convert/conversion.h"
#include "tests/convert/torch_archive.h"
#include "tools/convert/json.h"
#include "tools/convert/state_dict.h"
#include "tools/tensor_files/torch/file.h"

using namespace oq;
using namespace oq::convert;
using test::check_same_tensors;
using test::converted;
using test::TempDir;
using test::TinyOptions;

namespace {

namespace fs = std::filesystem;

template <class T>
double number(const std::byte* at) {
  T v;
  std::memcpy(&v, at, sizeof v);
  if constexpr (std::is_class_v<T>) {
    return double(to_float(v));
  } else {
    return double(v);
  }
}

/// An element of a tensor as JSON has it; every value in the golden files fits a double.
double number(std::string_view dtype, const std::byte* at) {
  if (dtype == "F32") return number<float>(at);
  if (dtype == "F16") return number<f16>(at);
  if (dtype == "BF16") return number<bf16>(at);
  if (dtype == "F64") return number<double>(at);
  if (dtype == "I64") return number<int64_t>(at);
  if (dtype == "I32") return number<int32_t>(at);
  if (dtype == "I16") return number<int16_t>(at);
  if (dtype == "I8") return number<int8_t>(at);
  if (dtype == "U16") return number<uint16_t>(at);
  return number<uint8_t>(at);  // U8, BOOL
}

std::vector<double> values(const torch::Tensor& t, uint64_t first, uint64_t n) {
  std::vector<std::byte> bytes(n * t.dtype->bytes);
  t.read(first, n, bytes.data());
  std::vector<double> out;
  for (uint64_t i = 0; i < n; ++i) {
    out.push_back(number(t.dtype->name, bytes.data() + i * t.dtype->bytes));
  }
  return out;
}

const torch::Tensor& find_tensor(const torch::Dict& root, const std::string& path) {
  const size_t slash = path.find('/');
  if (slash == std::string::npos) return root.get<torch::Tensor>(path);
  return find_tensor(root.get<torch::Dict>(path.substr(0, slash)), path.substr(slash + 1));
}

void check_tensor(const torch::Tensor& t, const nlohmann::json& expected) {
  CHECK(t.dtype->name == expected["dtype"].get<std::string>());
  CHECK(t.shape == expected["shape"].get<std::vector<uint64_t>>());
  CHECK(t.strides == expected["strides"].get<std::vector<uint64_t>>());
  const auto all = expected["values"].get<std::vector<double>>();
  REQUIRE(t.elements() == all.size());
  CHECK(values(t, 0, all.size()) == all);
  for (size_t first = 0; first < all.size(); ++first) {  // pieces that begin and end anywhere
    const size_t n = std::min<size_t>(all.size() - first, 1 + first % 7);
    const std::vector<double> piece(all.begin() + std::ptrdiff_t(first),
                                    all.begin() + std::ptrdiff_t(first + n));
    CHECK(values(t, first, n) == piece);
  }
}

std::string format_of(const test::Converted& c) {
  return c.file->metadata().get<std::string>("source.format");
}

void check_refused(const std::function<void()>& body, const std::string& says) {
  CAPTURE(says);
  try {
    body();
    FAIL_CHECK("was not refused");
  } catch (const Error& e) {
    const std::string what = e.what();
    CAPTURE(what);
    CHECK(what.find(says) != std::string::npos);
  }
}

void check_refused_file(const std::string& bytes, const std::string& says) {
  check_refused([&] { torch::File(std::as_bytes(std::span(bytes)), "test.bin"); }, says);
}

/// The tiny HF model with its weights in a file of torch.
void write_tiny_torch(const fs::path& folder, uint64_t seed, const TinyOptions& o,
                      bool transposed = false) {
  test::write_tiny_hf(folder, seed, o);
  fs::remove(folder / "model.safetensors");
  test::write_file(folder / "pytorch_model.bin",
                   test::torch_bytes(test::tiny_tensors(seed, o), o.dtype, transposed));
}

}  // namespace

TEST_CASE("files of torch hold what torch finds in them") {
  size_t tensors = 0;
  const nlohmann::json all = read_json(test::golden("torch/expected.json"));
  for (auto expected = all.begin(); expected != all.end(); ++expected) {
    CAPTURE(expected.key());
    const torch::File file(test::golden("torch/" + expected.key()));
    for (auto tensor = expected->begin(); tensor != expected->end(); ++tensor) {
      CAPTURE(tensor.key());
      check_tensor(find_tensor(file.dict(), tensor.key()), *tensor);
      ++tensors;
    }
  }
  CHECK(tensors == 4 + 13 + 3 * 13 + 3);
}

TEST_CASE("settings beside the tensors, as OWQ saves them") {
  const torch::File file(test::golden("torch/nested.pth"));
  const torch::Dict& root = file.dict();
  CHECK(root.get<bool>("packing"));
  CHECK(root.get<int64_t>("bits") == 3);
  CHECK(root.get<double>("ratio") == -0.5);
  CHECK(root.get<torch::Dtype>("dtype").name == "F16");
  CHECK(root.get<std::string_view>("name") == "größer");
  CHECK(root.find("nothing")->none());
  CHECK(root.get<torch::List>("shape").items().size() == 2);
  CHECK(root.get<torch::Dict>("n_out_dict").get<torch::Dict>("fc1").get<int64_t>("n_out") == 2);
  CHECK(root.get<torch::Dict>("n_out_dict").get<torch::Dict>("fc2").items().empty());
  std::vector<int64_t> numbers;
  for (const torch::Value& v : root.get<torch::List>("numbers").items()) {
    numbers.push_back(*v.as<int64_t>());
  }
  CHECK(numbers == std::vector<int64_t>{0, 255, 256, 65535, 65536, -1, int64_t(1) << 40,
                                        std::numeric_limits<int64_t>::min()});
  const torch::Dict& by_number = root.get<torch::Dict>("by_number");
  CHECK(*by_number.find(int64_t(0))->as<std::string_view>() == "zero");
  CHECK(by_number.find(int64_t(-7))->as<torch::List>()->items().size() == 3);
}

TEST_CASE("what lies in a row is not copied") {
  const torch::File file(test::golden("torch/views.bin"));
  const torch::Dict& d = file.dict();
  const auto& base = d.get<torch::Tensor>("base");
  CHECK(d.get<torch::Tensor>("again").bytes().data() == base.bytes().data());
  CHECK(d.get<torch::Tensor>("rows").bytes().data() == base.bytes().data() + 2 * 4 * 2);
  CHECK(d.get<torch::Tensor>("again").storage == base.storage);
  CHECK(d.get<torch::Tensor>("parameter").storage != base.storage);
  CHECK_FALSE(d.get<torch::Tensor>("transposed").contiguous());
  CHECK_FALSE(d.get<torch::Tensor>("expanded").contiguous());
}

TEST_CASE("a model that torch saved is the one that safetensors holds") {
  const TempDir dir;
  const auto expected = converted(test::golden("torch/llama/safetensors"), dir / "safetensors.oq");
  CHECK(format_of(expected) == "safetensors");
  for (const char* name : {"torch", "shards"}) {
    const auto c = converted(test::golden(fmt::format("torch/llama/{}", name)), dir / "torch.oq");
    CHECK(format_of(c) == "torch");
    check_same_tensors(*expected.file, *c.file);
  }
}

TEST_CASE("the tiny model as a file of torch, in each dtype and with strides") {
  for (const char* dtype : {"F32", "F16", "BF16"}) {
    for (const bool transposed : {false, true}) {
      CAPTURE(dtype);
      CAPTURE(transposed);
      const TempDir dir;
      TinyOptions o;
      o.dtype = dtype;
      o.biases = true;
      test::write_tiny_hf(dir / "safetensors", 21, o);
      write_tiny_torch(dir / "torch", 21, o, transposed);
      for (const char* scheme : {"w16a16", "w4a16g64"}) {
        const auto expected = converted(dir / "safetensors", dir / "a.oq", scheme);
        check_same_tensors(*expected.file, *converted(dir / "torch", dir / "b.oq", scheme).file);
      }
    }
  }
}

TEST_CASE("safetensors beside torch's format are preferred") {
  const TempDir dir;
  test::write_tiny_hf(dir / "model", 22);
  test::write_file(dir / "model" / "pytorch_model.bin", "not looked at");
  CHECK(format_of(converted(dir / "model", dir / "out.oq")) == "safetensors");
}

TEST_CASE("a storage with a wrong CRC is found when it is read, and only then") {
  const TempDir dir;
  write_tiny_torch(dir / "model", 23, {});
  const fs::path weights = dir / "model" / "pytorch_model.bin";
  const std::string sound = test::read_file(weights);
  const auto tensors = test::tiny_tensors(23);
  for (const size_t index : {size_t(0), tensors.size() / 2, tensors.size() - 1}) {
    const std::string data = test::encode_floats(tensors[index].values, "F32");
    std::string bytes = sound;
    const size_t at = bytes.find(data) + data.size() / 2;
    bytes[at] = char(bytes[at] ^ 1);
    test::write_file(weights, bytes);
    for (const char* scheme : {"w16a16", "w4a16g64"}) {
      check_refused([&] { converted(dir / "model", dir / "out.oq", scheme); },
                    fmt::format("entry 'archive/data/{}': has a wrong CRC-32", index));
      CHECK_FALSE(fs::exists(dir / "out.oq"));
    }
    const torch::File file(weights);
    CHECK_THROWS_AS(file.dict().get<torch::Tensor>(tensors[index].hf_name).bytes(), Error);
    CHECK_THROWS_AS(file.dict().get<torch::Tensor>(tensors[index].hf_name).bytes(), Error);
    CHECK_NOTHROW(file.dict().get<torch::Tensor>(tensors[1].hf_name).bytes());
  }
  std::string bytes = sound;  // the pickle is always checked
  bytes[bytes.find("model.norm.weight")] = 'M';
  check_refused_file(bytes, "'archive/data.pkl': has a wrong CRC-32");
}

TEST_CASE("files of torch made to hurt") {
  using test::pickle;
  using test::torch_bytes;
  const std::string weight = test::tensor(test::storage("FloatStorage", "0", 4), 0, {2, 2}, {2, 1});
  const std::string state = pickle(test::dict({{"w", weight}}));
  const std::string data(16, '\0');
  CHECK_NOTHROW(test::torch_bytes(state, {data}));
  check_refused_file(
      torch_bytes(pickle(test::global("os", "system") + test::text("id") + "\x85R"), {}),
      "asks for os.system");
  check_refused_file(torch_bytes(pickle("]q\x01h\x01"
                                        "a"),
                                 {}),
                     "holds itself");
  check_refused_file(torch_bytes(state, {}), "storage '0' is missing");
  check_refused_file(torch_bytes(state, {std::string(12, '\0')}), "about its size");
  check_refused_file(torch_bytes("", {}), "does not begin as a pickle");
  check_refused_file(torch_bytes(state, {data}, {{.name = "other/data.pkl", .data = state}}),
                     "two pickles");
  check_refused_file(torch_bytes(state, {data}, {{.name = "archive/constants.pkl"}}),
                     "TorchScript");
  check_refused_file(torch_bytes(state, {data}, {{.name = "archive/x", .method = 8}}), "deflate");
  check_refused_file(test::zip_bytes({{.name = "archive/data.pkl", .data = state},
                                      {.name = "archive/byteorder", .data = "big"}}),
                     "byte order");
  check_refused_file(test::zip_bytes({{.name = "model/weights", .data = "x"}}), "without data.pkl");
  check_refused_file("\x80\x02\x8A\x0A\x6C\xFC\x9C\x46\xF9\x20\x6A\xA8\x50\x19.",
                     "before version 1.6");
  check_refused_file("version https://git-lfs.github.com/spec/v1\noid", "Git LFS");
  check_refused_file("GGUF", "no file of torch.save");
  check_refused_file("", "no file of torch.save");

  const std::string list = torch_bytes(pickle("]"), {});
  const torch::File file(std::as_bytes(std::span(list)), "test.bin");
  check_refused([&] { file.dict(); }, "found a list");
}

TEST_CASE("a file of torch truncated at every byte") {
  for (const char* name : {"views.bin", "nested.pth"}) {
    const std::string bytes = test::read_file(test::golden(fmt::format("torch/{}", name)));
    REQUIRE(bytes.size() > 1000);
    for (size_t n = 0; n < bytes.size(); ++n) {
      CAPTURE(n);
      const std::string cut = bytes.substr(0, n);
      CHECK_THROWS_AS(torch::File(std::as_bytes(std::span(cut)), "cut.bin"), Error);
    }
  }
}

TEST_CASE("entries that are no weights") {
  const auto state_of = [](const std::vector<std::pair<std::string, std::string>>& items,
                           const std::function<void(std::vector<SourceTensor>)>& body) {
    const std::string bytes = test::torch_bytes(test::pickle(test::dict(items)), {"12345678"});
    const torch::File file(std::as_bytes(std::span(bytes)), "test.bin");
    body(state_dict(file.dict(), "test.bin"));
  };
  const std::string number = test::tensor(test::storage("LongStorage", "0", 1), 0, {}, {});
  state_of({{"step", "K\x05"}, {"count", number}}, [](const std::vector<SourceTensor>& sources) {
    REQUIRE(sources.size() == 2);
    CHECK(sources[0].type == nullptr);
    CHECK(sources[0].dtype == "an integer");
    CHECK(sources[1].type == nullptr);
    CHECK(sources[1].dtype == "I64");
    CHECK(sources[1].bytes().size() == 8);
  });
  const std::string strided = test::tensor(test::storage("IntStorage", "0", 2), 0, {2, 2}, {1, 0});
  state_of({{"odd", strided}}, [](const std::vector<SourceTensor>& sources) {
    check_refused([&] { sources[0].bytes(); }, "'odd': is a strided view");
  });
  const auto ignore = [](const std::vector<SourceTensor>&) {};
  check_refused(
      [&] {
        state_of({{"epoch", "K\x05"}, {"model", "}"}}, ignore);
      },
      "a dict of other things, among them 'model'");
  check_refused([&] { state_of({{"epoch", "K\x05"}}, ignore); }, "holds no tensor");
}

TEST_CASE("an index of torch shards that lies") {
  const TempDir dir;
  fs::copy(test::golden("torch/llama/shards"), dir / "model", fs::copy_options::recursive);
  const fs::path index = dir / "model" / "pytorch_model.bin.index.json";
  const auto refused = [&](const std::string& says) {
    check_refused([&] { converted(dir / "model", dir / "out.oq"); }, says);
  };
  const nlohmann::json sound = read_json(index);
  const std::string first = "pytorch_model-00001-of-00002.bin",
                    second = "pytorch_model-00002-of-00002.bin";
  nlohmann::json changed = sound;
  changed["weight_map"]["model.absent.weight"] = first;
  test::write_file(index, changed.dump());
  refused("tensor 'model.absent.weight' is not in shard '" + first + "'");
  changed = sound;
  changed["weight_map"]["model.norm.weight"] = "pytorch_model-00003-of-00002.bin";
  test::write_file(index, changed.dump());
  refused("shard 'pytorch_model-00003-of-00002.bin' is not there");
  changed["weight_map"]["model.norm.weight"] = "../" + first;
  test::write_file(index, changed.dump());
  refused("not in a file of this folder");
  changed = sound;
  for (auto& [tensor, file] : changed["weight_map"].items()) file = first;
  test::write_file(index, changed.dump());
  refused("is not in shard '" + first + "'");
  test::write_file(index, sound.dump());

  fs::copy_file(dir / "model" / first, dir / "model" / second,
                fs::copy_options::overwrite_existing);
  refused("occurs twice");
  fs::remove(dir / "model" / second);
  refused("shard '" + second + "' is not there");
  fs::remove(index);
  refused("holds no weights");
}

TEST_CASE("a file of torch alone is no checkpoint") {
  check_refused([] { Checkpoint::open(test::golden("torch/state.bin")); }, "give the folder");
}
