// Linears that GPTQ, AWQ and OWQ have quantized, taken over: golden/make_quantized.py made them and
// says what they mean.

#include <algorithm>
#include <random>

#include <doctest/doctest.h>

#include "tests/convert/quantized_folder.h"
#include "tools/convert/quantized/part.h"
#include "tools/convert/quantized/quantized_checkpoint.h"

using namespace oq;
using namespace oq::convert;
using test::RawTensor;
using test::RawTensors;
using test::TempDir;

namespace {

/// Rows of a golden matrix.
template <class T>
std::vector<T> row_of(const RawTensor& t, uint64_t row) {
  const uint64_t cols = t.shape.at(1);
  const std::vector<T> all = t.as<T>();
  return {all.begin() + std::ptrdiff_t(row * cols), all.begin() + std::ptrdiff_t((row + 1) * cols)};
}

/// One case of linears.json as a checkpoint of its own.
struct Case {
  std::string name, method;
  nlohmann::json settings;
  RawTensors tensors;

  bool meaning(const std::string& part) const {
    return part == "codes" || part == "points" || part == "steps" || part == "weak" ||
           part == "columns";
  }
  std::unique_ptr<QuantizedCheckpoint> open(const TempDir& dir) const {
    nlohmann::json config = {{"model_type", "llama"}};
    if (method != "owq") config["quantization_config"] = settings;
    test::write_file(dir / "config.json", config.dump());
    RawTensors parts;
    for (const auto& [part, tensor] : tensors) {
      if (!meaning(part)) parts["x." + part] = tensor;
    }
    test::write_raw(dir / "model.safetensors", parts);
    auto base = Checkpoint::open(dir.path());
    Quantization q;
    if (method == "owq") {
      q = {.method = QuantMethod::owq,
           .bits = settings["bits"].get<uint32_t>(),
           .group = 0,
           .symmetric = false,
           .zeros = GptqZeros::stored,
           .producer = {},
           .where = dir / "x.pth"};
    } else {
      q = read_quantization(*base).value();
    }
    return std::make_unique<QuantizedCheckpoint>(std::move(base), q);
  }
};

std::vector<Case> cases() {
  const RawTensors all = test::read_raw(test::golden("quantized/linears.safetensors"));
  std::vector<Case> out;
  for (const auto& entry : read_json(test::golden("quantized/linears.json"))) {
    Case c{entry["name"], entry["method"], entry["settings"], {}};
    const std::string prefix = c.name + ".";
    for (const auto& [name, tensor] : all) {
      if (name.rfind(prefix, 0) == 0) c.tensors[name.substr(prefix.size())] = tensor;
    }
    out.push_back(std::move(c));
  }
  return out;
}

Case named(const std::string& name) {
  for (Case& c : cases()) {
    if (c.name == name) return c;
  }
  FAIL("no case " << name);
  return {};
}

PackedBuilder taken_over(const PackedSource& source) {
  PackedBuilder builder(source.rows(), source.cols(), source.packing());
  builder.set_weak_indices(source.weak_indices());
  for (uint64_t row = 0; row < source.rows(); ++row) source.copy_row(row, row, builder);
  return builder;
}

void check_row(const Case& c, const PackedView& view, uint64_t row) {
  const PackedLayout& layout = view.layout();
  const auto codes = row_of<uint8_t>(c.tensors.at("codes"), row);
  const auto points = row_of<int32_t>(c.tensors.at("points"), row);
  const auto steps = row_of<uint16_t>(c.tensors.at("steps"), row);
  std::vector<uint8_t> stored(layout.padded_cols);
  view.unpack_row(row, stored);
  stored.resize(layout.cols);
  CHECK(stored == codes);
  REQUIRE(points.size() == layout.groups);
  std::vector<float> expected(layout.cols), weights(layout.cols);
  for (uint64_t g = 0; g < layout.groups; ++g) {
    CHECK(view.zero(row, g) == points[g]);
    CHECK(view.scale(row, g) == to_float(f16{steps[g]}));
    for (uint64_t k = g * layout.group; k < std::min(layout.cols, (g + 1) * layout.group); ++k) {
      expected[k] = to_float(f16{steps[g]}) * float(int(codes[k]) - points[g]);
    }
  }
  if (layout.packing.weak_columns > 0) {
    const auto columns = c.tensors.at("columns").as<int32_t>();
    const auto weak = row_of<uint16_t>(c.tensors.at("weak"), row);
    for (size_t i = 0; i < columns.size(); ++i) {
      CHECK(view.weak_indices()[i] == uint32_t(columns[i]));
      expected[size_t(columns[i])] = to_float(f16{weak[i]});
    }
  }
  view.dequantize_row(row, weights);
  CHECK(weights == expected);
}

/// What opening the case says; empty where it says nothing.
std::string refusal(const Case& c) {
  const TempDir dir;
  try {
    const auto checkpoint = c.open(dir);
    taken_over(*checkpoint->find("x.weight")->packed);
    return {};
  } catch (const Error& e) {
    return e.what();
  }
}

void check_refused(const Case& c, const std::vector<const char*>& says) {
  const std::string text = refusal(c);
  CAPTURE(text);
  for (const char* part : says) {
    CAPTURE(part);
    CHECK(text.find(part) != std::string::npos);
  }
}

}  // namespace

TEST_CASE("every format arrives with its codes, zero points, scales and weak columns") {
  size_t compared = 0;
  for (const Case& c : cases()) {
    CAPTURE(c.name);
    const TempDir dir;
    const auto checkpoint = c.open(dir);
    CHECK(checkpoint->tensors().size() == 1);
    const SourceTensor* linear = checkpoint->find("x.weight");
    REQUIRE(linear != nullptr);
    const RawTensor& codes = c.tensors.at("codes");
    REQUIRE(linear->rows == codes.shape[0]);
    REQUIRE(linear->cols == codes.shape[1]);
    const PackedBuilder built = taken_over(*linear->packed);
    std::vector<float> weights(linear->cols), floats(linear->cols);
    for (uint64_t row = 0; row < linear->rows; ++row) {
      check_row(c, built.view(), row);
      checkpoint->read_rows(*linear, row, 1, floats.data());
      built.view().dequantize_row(row, weights);
      CHECK(floats == weights);
      ++compared;
    }
  }
  CHECK(compared > 500);
}

TEST_CASE("zero points take the room that they need") {
  const std::map<std::string, ZeroMode> expected = {
      {"gptq2_sym_v1", ZeroMode::constant},    {"gptq3_sym_v1", ZeroMode::constant},
      {"gptq4_sym_v1", ZeroMode::constant},    {"gptq8_sym_v1", ZeroMode::constant},
      {"gptq4_no_index", ZeroMode::constant},  {"gptq2_asym_v2", ZeroMode::code_width},
      {"gptq4_asym_v1", ZeroMode::code_width}, {"gptq2_beyond_v1", ZeroMode::i16},
      {"gptq4_beyond_v1", ZeroMode::i16},      {"gptq4_words_v1", ZeroMode::code_width},
      {"awq_g32", ZeroMode::code_width},       {"awq_sym", ZeroMode::constant},
      {"owq3", ZeroMode::code_width},          {"owq3_beyond", ZeroMode::i16}};
  size_t found = 0;
  for (const Case& c : cases()) {
    const auto mode = expected.find(c.name);
    if (mode == expected.end()) continue;
    CAPTURE(c.name);
    const TempDir dir;
    const auto checkpoint = c.open(dir);
    const Packing& p = checkpoint->find("x.weight")->packed->packing();
    CHECK(p.zero_mode == mode->second);
    if (mode->second == ZeroMode::constant) CHECK(p.zero == 1 << (p.bits - 1));
    CHECK(checkpoint->notices().empty() == (c.name.find("beyond_v1") == std::string::npos));
    ++found;
  }
  CHECK(found == expected.size());
}

TEST_CASE("the scheme is the checkpoint's") {
  const std::map<std::string, const char*> expected = {
      {"gptq2_sym_v1", "w2sa16g32"}, {"gptq2_asym_v2", "w2a16"},    {"gptq4_asym_v2", "w4a16g128"},
      {"gptq8_sym_v1", "w8sa16g32"}, {"awq_g32", "w4a16g32"},       {"awq_row", "w4a16"},
      {"awq_sym", "w4sa16g64"},      {"gptq3_asym_v1", "w3a16g64"}, {"owq3", "w3a16"}};
  size_t found = 0;
  for (const Case& c : cases()) {
    const auto scheme = expected.find(c.name);
    if (scheme == expected.end()) continue;
    const TempDir dir;
    CHECK(c.open(dir)->quantization().scheme().str() == scheme->second);
    ++found;
  }
  CHECK(found == expected.size());
}

TEST_CASE("older names of settings, and files beside config.json") {
  const TempDir dir;
  Case c = named("gptq4_asym_v1");
  c.settings.erase("quant_method");
  c.settings.erase("checkpoint_format");
  CHECK(c.open(dir)->quantization().name() == "gptq");
  test::write_file(dir / "config.json", R"({"model_type": "llama"})");
  const auto base = [&] { return Checkpoint::open(dir.path()); };
  CHECK_FALSE(read_quantization(*base()).has_value());
  test::write_file(dir / "quantize_config.json", c.settings.dump());
  const QuantizedCheckpoint beside(base(), read_quantization(*base()).value());
  CHECK(beside.quantization().bits == 4);
  CHECK(beside.files().back().filename() == "quantize_config.json");

  const TempDir other;
  c = named("awq_g32");
  c.settings["version"] = "GEMM";
  CHECK(c.open(other)->quantization().method == QuantMethod::awq);
}

TEST_CASE("methods and variants that cannot be taken over are refused by name") {
  const auto with = [](const char* name, const char* key, const nlohmann::json& value) {
    Case c = named(name);
    c.settings[key] = value;
    return c;
  };
  for (const char* method : {"bitsandbytes", "fp8", "compressed-tensors", "aqlm", "hqq"}) {
    check_refused(with("gptq4_asym_v1", "quant_method", method), {method, "gptq"});
  }
  for (const char* format : {"marlin", "bitblas", "gptq_p"}) {
    check_refused(with("gptq4_asym_v1", "checkpoint_format", format), {format, "gptq_v2"});
  }
  for (const char* version : {"gemv", "gemv_fast", "marlin", "exllama"}) {
    check_refused(with("awq_g32", "version", version), {version, "gemm"});
  }
  check_refused(with("awq_g32", "backend", "llm-awq"), {"llm-awq"});
  check_refused(with("awq_g32", "bits", 8), {"awq", "expected 4 bits, found 8"});
  check_refused(with("gptq4_asym_v1", "bits", 5), {"gptq", "2, 3, 4 or 8", "found 5"});
  check_refused(with("gptq4_asym_v1", "is_marlin_format", true), {"Marlin"});
  check_refused(with("gptq4_asym_v1", "pack_dtype", "int16"), {"int16"});
  check_refused(with("gptq4_asym_v1", "dynamic", {{"+:.*down.*", {{"bits", 8}}}}), {"dynamic"});
  check_refused(with("gptq3_asym_v1", "meta", {{"quantizer", {"gptqmodel:5.8.0"}}}),
                {"gptqmodel:5.8.0"});
  CHECK(refusal(with("gptq4_asym_v1", "dynamic", nullptr)).empty());
  CHECK(refusal(with("gptq3_asym_v1", "meta", {{"quantizer", {"gptqmodel:6.1.0"}}})).empty());
  Case nameless = named("gptq4_asym_v1");
  nameless.settings = {{"something", "else"}};
  check_refused(nameless, {"no quant_method"});
}

TEST_CASE("settings that contradict the tensors") {
  const auto with = [](const char* name, const char* key, const nlohmann::json& value) {
    Case c = named(name);
    c.settings[key] = value;
    return c;
  };
  check_refused(with("gptq4_asym_v1", "bits", 8),
                {"'x.qweight'", "8 bits", "[24, 32]", "[12, 32]"});
  check_refused(with("gptq4_asym_v1", "bits", 3), {"'x.qweight'", "3 bits"});
  check_refused(with("gptq4_asym_v1", "group_size", 64), {"'x.scales'", "groups of 64", "[3, 32]"});
  check_refused(with("gptq4_asym_v1", "group_size", -1), {"'x.scales'", "[1, 32]"});
  check_refused(with("gptq4_asym_v1", "group_size", 0), {"group_size", "found 0"});
  check_refused(with("gptq4_asym_v1", "group_size", -32), {"group_size"});
  check_refused(with("gptq4_asym_v1", "group_size", "all"), {"group_size", "an integer"});
  check_refused(with("gptq4_asym_v1", "sym", true),
                {"'x.qzeros'", "symmetric", "zero points of 8"});
  check_refused(with("gptq4_sym_v1", "checkpoint_format", "gptq_v2"), {"they fit version 1"});
  check_refused(with("gptq4_no_index", "checkpoint_format", "gptq"), {"they fit version 2"});
  check_refused(with("awq_g32", "zero_point", false), {"'x.qzeros'", "zero points of 8"});
  check_refused(with("awq_g32", "group_size", 64), {"'x.scales'", "groups of 64"});
}

TEST_CASE("act-order is refused by name, where it has groups") {
  Case c = named("gptq4_asym_v1");
  RawTensor& index = c.tensors["g_idx"];
  index.set<int32_t>(0, 1);
  index.set<int32_t>(32, 0);
  check_refused(c, {"'x.g_idx'", "act-order", "static groups"});
  // One group: any order is the same.
  Case row = named("gptq2_beyond_v1");
  row.settings["desc_act"] = true;
  CHECK(refusal(row).empty());
  for (const int32_t bad : {3, -1, INT32_MAX, INT32_MIN}) {
    Case out = named("gptq4_asym_v1");
    out.tensors["g_idx"].set<int32_t>(95, bad);
    check_refused(out, {"'x.g_idx'", "group that is not there", "0 to 2"});
  }
}

TEST_CASE("groups that a .oq file does not have") {
  for (const char* name : {"gptq4_asym_v1", "awq_g32"}) {
    Case c = named(name);
    c.settings["group_size"] = 48;
    for (const char* part : {"scales", "qzeros"}) {
      RawTensor& t = c.tensors[part];
      t.bytes.resize(t.bytes.size() / 3 * 2);
      t.shape[0] = 2;
    }
    if (c.method == "gptq") {
      for (size_t k = 0; k < 96; ++k) c.tensors["g_idx"].set<int32_t>(k, int32_t(k / 48));
    }
    check_refused(c, {"'x.scales'", "a multiple of 32", "48"});
  }
  Case whole = named("gptq2_beyond_v1");  // one group, whatever its size is called
  whole.settings["group_size"] = 100;
  CHECK(refusal(whole).empty());
}

TEST_CASE("scales in other float types: only what f16 holds") {
  for (const bool exact : {true, false}) {
    Case c = named("gptq4_asym_v1");
    RawTensor& t = c.tensors["scales"];
    const auto halves = t.as<uint16_t>();
    t.dtype = "F32";
    t.bytes.resize(halves.size() * 4);
    for (size_t i = 0; i < halves.size(); ++i) t.set<float>(i, to_float(f16{halves[i]}));
    if (!exact) t.set<float>(5, 0.1f);
    if (exact) {
      CHECK(refusal(c).empty());
    } else {
      check_refused(c, {"'x.scales'", "f16 cannot hold exactly", "0.1 at [0, 5]"});
    }
  }
  Case bf = named("owq4");
  RawTensor& t = bf.tensors["scales"];
  t.dtype = "BF16";
  for (size_t i = 0; i < t.bytes.size() / 2; ++i) t.set<uint16_t>(i, to_bf16(0.03125f).bits);
  CHECK(refusal(bf).empty());
  t.set<uint16_t>(3, 0x7F80);
  check_refused(bf, {"'x.scales'", "not finite"});
}

TEST_CASE("parts that are missing, of another type, or of another shape") {
  for (const char* name : {"gptq4_asym_v1", "awq_g32", "owq3"}) {
    const Case whole = named(name);
    for (const auto& each : whole.tensors) {
      const std::string& part = each.first;
      if (whole.meaning(part)) continue;
      CAPTURE(name);
      CAPTURE(part);
      Case c = whole;
      c.tensors.erase(part);
      const bool may_miss = part == "g_idx" || part == "outlieridx";
      CHECK(refusal(c).empty() == may_miss);

      c = whole;
      c.tensors[part].dtype = c.tensors[part].dtype == "F16" ? "I16" : "F32";
      if (whole.tensors.at(part).dtype == "U8") c.tensors[part].dtype = "I8";
      check_refused(c, {part.c_str(), "type"});

      c = whole;
      std::reverse(c.tensors[part].shape.begin(), c.tensors[part].shape.end());
      // oweight may lie either way.
      if (c.tensors[part].shape.size() == 2 && part != "oweight") CHECK_FALSE(refusal(c).empty());

      c = whole;
      c.tensors[part].shape.back() = 0;
      c.tensors[part].bytes.clear();
      CHECK(refusal(c).empty() == (part == "outlieridx"));
    }
  }
  Case c = named("owq3");
  c.tensors["outlieridx"].set<int32_t>(0, 96);
  check_refused(c, {"'x.outlieridx'", "not there", "0 to 95"});
  c.tensors["outlieridx"].set<int32_t>(0, 10);
  check_refused(c, {"'x.outlieridx'", "twice", "10"});
  c = named("owq3");
  c.tensors["oweight"].set<uint16_t>(1, 0x7E00);
  check_refused(c, {"'x.oweight'", "not finite"});
}

TEST_CASE("a checkpoint without a single quantized tensor is not what it says") {
  Case c = named("gptq4_asym_v1");
  c.tensors = {{"weight", c.tensors["scales"]}};
  check_refused(c, {"no quantized tensor", "gptq"});
}

TEST_CASE("random shapes and settings neither crash nor slip through in another shape") {
  std::mt19937 rng(3);
  const auto below = [&](uint64_t n) { return uint64_t(rng() % n); };
  const std::vector<Case> all = cases();
  size_t refused = 0;
  for (int round = 0; round < 1500; ++round) {
    Case c = all[below(all.size())];
    for (auto& [part, t] : c.tensors) {
      if (c.meaning(part) || below(3) == 0) continue;
      const uint64_t width = t.dtype == "U8" ? 1 : t.dtype == "F16" ? 2 : 4;
      for (uint64_t& n : t.shape)
        n = below(4) == 0 ? n : below(2) == 0 ? n + 1 - below(3) : below(70);
      uint64_t bytes = width;
      for (const uint64_t n : t.shape) bytes *= n;
      t.bytes.resize(bytes, char(below(256)));
    }
    if (c.method != "owq" && below(2) == 0) c.settings["group_size"] = int64_t(below(130)) - 2;
    if (c.method == "gptq" && below(2) == 0) c.settings["bits"] = 2 + below(7);
    const TempDir dir;
    try {
      const auto checkpoint = c.open(dir);
      const PackedSource& source = *checkpoint->find("x.weight")->packed;
      CHECK(taken_over(source).bytes().size() == source.layout().bytes);
    } catch (const Error& e) {
      CHECK_FALSE(std::string(e.what()).empty());
      ++refused;
    }
  }
  CHECK(refused > 1000);
}

TEST_CASE("a stream's codes are the same one by one") {
  std::mt19937 rng(4);
  for (const uint32_t bits : {2u, 3u, 4u, 8u}) {
    std::vector<uint32_t> words(24);
    for (uint32_t& w : words) w = uint32_t(rng());
    for (const uint64_t n : {uint64_t(1), uint64_t(31), uint64_t(32), uint64_t(33), uint64_t(90)}) {
      const auto word = [&](uint64_t i) { return words.at(i); };
      std::vector<uint8_t> codes(n);
      unpack_stream(bits, codes, word);
      CHECK(stream_words(n, bits) == (n * bits + 31) / 32);
      for (uint64_t i = 0; i < n; ++i) CHECK(stream_code(bits, i, word) == codes[i]);
    }
  }
}
