/// Learned parameters apart from the model: saved, applied without training, refused where they do
/// not belong; OmniQuant's own files, held to golden/make_omniquant.py.

#include "tools/calibrate/parameters.h"

#include <cmath>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/calibrate/small_run.h"
#include "tests/convert/golden_models.h"
#include "tests/convert/torch_archive.h"
#include "tests/tiny_oq.h"
#include "tests/variants.h"
#include "tools/calibrate/block.h"

using namespace oq;
using test::refusal;
using test::TempDir;
namespace fs = std::filesystem;

namespace {

/// A run that learns and saves.
calibrate::Options learning(const fs::path& in, const TempDir& dir, const char* method,
                            const char* scheme) {
  calibrate::Options o = test::small_run(in, dir / "learned.oq", method, scheme);
  o.seed = 7;
  o.learning.transform = true;
  o.save_parameters = dir / "p.safetensors";
  return o;
}

/// The same, from saved parameters.
calibrate::Options applying(calibrate::Options o, const TempDir& dir) {
  o.output = dir / "applied.oq";
  o.text = "";
  o.seed = 0;
  o.windows = 128;
  o.window = 2048;
  o.learning.epochs = 10;
  o.parameters = std::exchange(o.save_parameters, "");
  return o;
}

void check_says(const std::string& text, std::initializer_list<const char*> parts) {
  for (const std::string part : parts) {
    CAPTURE(text);
    CAPTURE(part);
    CHECK(text.find(part) != std::string::npos);
  }
}

ModelConfig config_of(const fs::path& model) { return ModelConfig::load(*File::open(model)); }

/// A tiny model of which omniquant has learned at w3a16.
struct LearnedModel {
  LearnedModel() {
    test::make_tiny_oq(dir / "in.oq");
    calibrate::calibrate(o);
  }

  ModelConfig config() const { return config_of(dir / "in.oq"); }
  calibrate::Parameters saved() const {
    return calibrate::read_parameters(dir / "p.safetensors", config());
  }

  const TempDir dir;
  const calibrate::Options o = learning(dir / "in.oq", dir, "omniquant", "w3a16");
};

}  // namespace

TEST_CASE("saved parameters make the file that learning them made, in every variant") {
  const TempDir dir;
  bool faithful = false;
  for (const ModelConfig& config : test::variant_configs()) {
    test::TinyOq tiny;
    tiny.config = config;
    test::make_tiny_oq(dir / "in.oq", tiny);
    for (const auto& [method, scheme] :
         {std::pair("omniquant", "w3a16g64"), std::pair("omniquant", "w4a4q4kv4"),
          std::pair("abq", "w2*a8")}) {
      auto o = learning(dir / "in.oq", dir, method, scheme);
      o.learning.faithful = faithful;
      faithful = !faithful;  // of three methods in a row: each meets both, in other variants
      calibrate::calibrate(o);
      calibrate::calibrate(applying(o, dir));
      CHECK(test::read_file(dir / "learned.oq") == test::read_file(dir / "applied.oq"));
    }
  }
}

TEST_CASE("parameters say what they were learned from, and are saved again as they are") {
  const LearnedModel m;
  const TempDir& dir = m.dir;
  const auto p = m.saved();
  CHECK(p.metadata.at("options") == "--method omniquant --scheme w3a16 --let");
  CHECK(p.metadata.at("seed") == "7");
  CHECK(p.metadata.at("text") == "self");
  CHECK(p.metadata.at("training").find("--epochs 2") != std::string::npos);
  CHECK(p.metadata.at("model_crc32c") ==
        File::open(dir / "learned.oq")->metadata().get<std::string>("calibration.model_crc32c"));
  CHECK(p.metadata.count("tokenizer_crc32c") == 1);
  CHECK(p.metadata.count("source_sha256") == 1);
  REQUIRE(p.blocks.size() == 2);
  CHECK(p.blocks[1].at("q.upper").rows() == 120);
  CHECK(p.blocks[1].at("qkv.scale").cols() == 72);

  auto again = applying(m.o, dir);
  again.save_parameters = dir / "again.safetensors";
  calibrate::calibrate(again);
  CHECK(test::read_file(dir / "again.safetensors") == test::read_file(dir / "p.safetensors"));
}

TEST_CASE("parameters of something else are refused, with what was expected and found") {
  const LearnedModel m;
  const TempDir& dir = m.dir;
  const auto with = [&](auto change) {
    auto other = applying(m.o, dir);
    change(other);
    return refusal(other);
  };
  using O = calibrate::Options;
  check_says(with([](O& x) { x.scheme = Scheme::parse("w4a16"); }),
             {"p.safetensors", "other options", "expected --method omniquant --scheme w4a16 --let",
              "found --method omniquant --scheme w3a16 --let"});
  check_says(with([](O& x) { x.method = "abq"; }), {"other options"});
  check_says(with([](O& x) { x.learning.transform = false; }), {"other options", "--no-let"});
  check_says(with([](O& x) { x.learning.faithful = true; }), {"other options", "--faithful"});
  check_says(with([](O& x) { x.method = "gptq"; }), {"omniquant and abq"});
  check_says(with([](O& x) { x.smooth = true; }), {"--smooth"});
  test::TinyOq tiny;
  tiny.seed = 2;
  test::make_tiny_oq(dir / "other.oq", tiny);
  check_says(with([&](O& x) { x.input = dir / "other.oq"; }),
             {"another model", "expected", "found"});
  CHECK_FALSE(fs::exists(dir / "applied.oq"));
  auto unwritable = m.o;
  unwritable.output = dir / "x.oq";
  unwritable.save_parameters = dir / "none/p.safetensors";
  check_says(refusal(unwritable), {"none", "no such folder"});
  unwritable.save_parameters = dir / "p.bin";
  check_says(refusal(unwritable), {"p.bin", "NAME.safetensors"});
}

TEST_CASE("no file that is read, and none twice, is written") {
  const LearnedModel m;
  const TempDir& dir = m.dir;
  fs::copy_file(dir / "in.oq", dir / "in.safetensors");
  const std::string model = test::read_file(dir / "in.oq");
  const std::string parameters = test::read_file(dir / "p.safetensors");
  auto o = m.o;
  o.input = dir / "in.safetensors";
  o.save_parameters = dir / "./in.safetensors";
  check_says(refusal(o), {"is the input itself", "--save-params"});
  o.save_parameters = o.output = dir / "new.safetensors";
  check_says(refusal(o), {"is the file of -o itself", "--save-params"});
  o = applying(m.o, dir);
  o.output = dir / "p.safetensors";
  check_says(refusal(o), {"is the file of --params itself", "-o"});
  fs::create_hard_link(dir / "in.oq", dir / "link.oq");
  o = m.o;
  o.output = dir / "link.oq";
  check_says(refusal(o), {"is the input itself", "-o"});
  CHECK(test::read_file(dir / "in.oq") == model);
  CHECK(test::read_file(dir / "in.safetensors") == model);
  CHECK(test::read_file(dir / "p.safetensors") == parameters);
}

TEST_CASE("what starts from 1 does not say that --alpha had a part in it") {
  const TempDir dir;
  test::make_tiny_oq(dir / "in.oq");
  const auto says_alpha = [&](const char* scheme, bool faithful) {
    auto o = learning(dir / "in.oq", dir, "omniquant", scheme);
    o.learning.epochs = 0;
    o.learning.faithful = faithful;
    return calibrate::calibrate(o).options.find("--alpha") != std::string::npos;
  };
  CHECK_FALSE(says_alpha("w3a16", false));
  CHECK(says_alpha("w3a16", true));
  CHECK(says_alpha("w3a8", false));
}

TEST_CASE("damaged parameters are refused") {
  const LearnedModel m;
  const TempDir& dir = m.dir;
  const auto sound = m.saved();
  const auto with = [&](auto change) {
    calibrate::Parameters p = sound;
    change(p);
    calibrate::write_parameters(dir / "p.safetensors", p);
    return refusal(applying(m.o, dir));
  };
  using P = calibrate::Parameters;
  using calibrate::Matrix;
  check_says(with([](P& p) { p.blocks[1].clear(); }), {"block 1", "2 blocks"});
  check_says(with([](P& p) { p.blocks.emplace_back(p.blocks[0]); }), {"blocks.2", "no block"});
  check_says(with([](P& p) { p.blocks[0].erase("k.lower"); }), {"blocks.0.k.lower", "none"});
  check_says(with([](P& p) { p.blocks[0]["k.lower"] = Matrix(3, 1); }),
             {"blocks.0.k.lower", "expected [40, 1]", "found [3, 1]"});
  check_says(with([](P& p) { p.blocks[1]["down.upper"](4, 0) = NAN; }),
             {"blocks.1.down.upper", "not finite", "row 4"});
  check_says(with([](P& p) { p.blocks[1]["o.scale"](0, 2) = 0; }), {"blocks.1.o.scale", "is 0"});
  check_says(with([](P& p) { p.blocks[1]["o.magic"] = Matrix(1, 1); }),
             {"blocks.1.o.magic", "no parameter"});
  check_says(with([](P& p) { p.metadata.erase("training"); }), {"training"});
  check_says(with([](P& p) { p.metadata["seed"] = "x"; }), {"seed"});
  CHECK(with([](P&) {}) == "calibrated");

  const std::string bytes = test::read_file(dir / "p.safetensors");
  for (size_t n = 0; n < bytes.size(); n += n < 3000 ? 7 : 1009) {
    test::write_file(dir / "cut.safetensors", bytes.substr(0, n));
    CHECK_THROWS_AS(calibrate::read_parameters(dir / "cut.safetensors", m.config()), Error);
  }
}

TEST_CASE("OmniQuant's parameters make what its formulas say") {
  const TempDir dir;
  for (const auto& [name, scheme] : {std::pair("opt", "w4a6"), std::pair("llama-bias", "w3a16"),
                                     std::pair("mixtral", "w4a16")}) {
    const std::string model = name;
    CAPTURE(model);
    const fs::path golden = test::golden("omniquant") / name;
    test::to_oq(test::golden("families") / name, dir / "in.oq");
    calibrate::Options o;
    o.input = dir / "in.oq";
    o.output = dir / "out.oq";
    o.method = "omniquant";
    o.scheme = Scheme::parse(scheme);
    o.parameters = golden / "omni_parameters.pth";
    o.threads = 2;
    calibrate::calibrate(o);
    const auto file = File::open(dir / "out.oq");
    const std::string bytes = test::read_file(golden / "expected.safetensors");
    int64_t codes = 0, differ = 0;
    std::map<std::string, SafeTensor> expected;
    for (const SafeTensor& t : read_safetensors(std::as_bytes(std::span(bytes)), name)) {
      expected[t.name] = t;
    }
    REQUIRE(expected.size() > 10);
    for (const auto& entry : expected) {
      const std::string& full = entry.first;
      const SafeTensor& t = entry.second;
      CAPTURE(full);
      const std::string linear = full.substr(0, full.rfind('.'));
      if (full.ends_with(".codes")) {
        const PackedView view = file->packed(file->tensor(linear));
        std::vector<uint8_t> row(view.layout().padded_cols);
        for (uint64_t r = 0; r < t.shape[0]; ++r) {
          view.unpack_row(r, row);
          for (uint64_t k = 0; k < t.shape[1]; ++k) {
            ++codes;
            differ += row[k] != uint8_t(t.data[r * t.shape[1] + k]) ? 1 : 0;
          }
        }
      } else if (full.ends_with(".scale")) {
        const PackedView view = file->packed(file->tensor(linear));
        for (uint64_t r = 0; r < t.shape[0]; ++r) {
          f16 truth;
          std::memcpy(&truth, t.data.data() + 2 * r, 2);
          CHECK(view.scale(r, 0) == doctest::Approx(to_float(truth)).epsilon(0.001));
        }
      } else if (full.ends_with(".zero")) {
        const PackedView view = file->packed(file->tensor(linear));
        for (uint64_t r = 0; r < t.shape[0]; ++r) {
          int16_t truth;
          std::memcpy(&truth, t.data.data() + 2 * r, 2);
          CHECK(std::abs(view.zero(r, 0) - truth) <= 0);
        }
      } else {
        std::vector<float> truth(t.data.size() / 4);
        std::memcpy(truth.data(), t.data.data(), t.data.size());
        const std::vector<float> found = calibrate::read_tensor(*file, full);
        REQUIRE(found.size() == truth.size());
        for (size_t i = 0; i < truth.size(); ++i) {
          CHECK(found[i] == doctest::Approx(truth[i]).epsilon(1e-5).scale(1));
        }
      }
    }
    CHECK(codes > 10000);
    CHECK(differ * 2000 <= codes);  // a weight in the middle between two codes
  }
}

TEST_CASE("OmniQuant's parameters of OPT are applied with one range over all heads") {
  const TempDir dir;
  for (const char* name : {"opt", "llama-bias"}) {
    const std::string model = name;
    CAPTURE(model);
    test::to_oq(test::golden("families") / name, dir / "in.oq");
    const auto range = [&](const char* scheme) {
      auto o = test::small_run(dir / "in.oq", dir / "out.oq", "omniquant", scheme);
      o.text = "";
      o.parameters = test::golden("omniquant") / name / "omni_parameters.pth";
      calibrate::calibrate(o);
      return File::open(o.output)->metadata().get_or<std::string>("attention.range", "none");
    };
    CHECK(range("w4a6q6kv6") == (model == "opt" ? "token" : "none"));
    CHECK(range("w4a6") == "none");
  }
}

namespace {

/// A dict of one block; its tensors are fp32 vectors of a storage of their own.
std::string pth(const std::string& key,
                const std::vector<std::pair<std::string, std::vector<float>>>& tensors) {
  std::vector<std::pair<std::string, std::string>> items;
  std::vector<std::string> storages;
  for (const auto& [name, values] : tensors) {
    const std::string own =
        test::storage("FloatStorage", std::to_string(storages.size()), values.size());
    items.emplace_back(name, test::tensor(own, 0, {values.size()}, {1}));
    storages.emplace_back(reinterpret_cast<const char*>(values.data()), 4 * values.size());
  }
  return test::torch_bytes(test::pickle("}(" + key + test::dict(items) + "u"), storages);
}

}  // namespace

TEST_CASE("OmniQuant's files of another model, and bad ones, are refused") {
  const TempDir dir;
  test::make_tiny_oq(dir / "in.oq");
  const ModelConfig config = config_of(dir / "in.oq");
  const auto says = [&](const std::string& bytes) -> std::string {
    test::write_file(dir / "x.pth", bytes);
    try {
      calibrate::read_parameters(dir / "x.pth", config);
    } catch (const Error& e) {
      return e.what();
    }
    return "read";
  };
  const std::string upper = "self_attn.q_proj.weight_quantizer.upbound_factor";
  const std::vector<float> rows(120, 4.0f);
  check_says(says(pth(test::integer(0), {{upper, rows}})), {"x.pth", "block 1", "2 blocks"});
  check_says(says(pth(test::integer(2), {{upper, rows}})), {"x.pth", "2 blocks", "block 2"});
  check_says(says(pth(test::text("model"), {{upper, rows}})), {"x.pth", "'model'"});
  check_says(says(pth(test::integer(0), {{upper, {4, 4, 4}}})),
             {"block 0", upper.c_str(), "multiple of 120", "found 3"});
  check_says(says(pth(test::integer(0), {{"self_attn.q_proj.weight", rows}})),
             {"self_attn.q_proj.weight", "not a parameter"});
  auto bad = rows;
  bad[5] = INFINITY;
  check_says(says(pth(test::integer(0), {{upper, bad}})), {"blocks.0.q.upper", "not finite"});
  check_says(says("PK rubbish"), {"x.pth"});
  const std::string sound =
      test::read_file(test::golden("omniquant/llama-bias/omni_parameters.pth"));
  check_says(says(sound), {"multiple of 120"});  // of a model of other sizes
  for (size_t n = 0; n < sound.size(); n += 397) CHECK(says(sound.substr(0, n)) != "read");
}

TEST_CASE("transformations start from OmniQuant's measured ranges") {
  const TempDir dir;
  test::to_oq(test::golden("families/opt"), dir / "in.oq");
  const ModelConfig config = config_of(dir / "in.oq");
  auto o = learning(dir / "in.oq", dir, "omniquant", "w4a6");
  o.learning.epochs = 0;
  o.learning.faithful = true;
  o.act_scales = test::golden("omniquant/opt/act_scales.pt");
  o.act_shifts = test::golden("omniquant/opt/act_shifts.pt");
  calibrate::calibrate(o);
  const auto ranges = calibrate::read_input_ranges(o.act_scales, o.act_shifts, config);
  const auto p = calibrate::read_parameters(dir / "p.safetensors", config);
  for (int64_t b = 0; b < 2; ++b) {
    const auto& block = p.blocks[size_t(b)];
    const auto& range = ranges[size_t(b)];
    const auto w =
        calibrate::read_tensor(*File::open(dir / "in.oq"), fmt::format("blocks.{}.q", b));
    for (int64_t i = 0; i < 44; ++i) {
      CHECK(block.at("qkv.shift")(0, i) == doctest::Approx(range.at("q.middle")(0, i)));
      float largest = 0;
      for (size_t r = 0; r < 44; ++r) largest = std::max(largest, std::fabs(w[r * 44 + size_t(i)]));
      CHECK(block.at("qkv.scale")(0, i) ==
            doctest::Approx(std::sqrt(range.at("q.largest")(0, i) / largest)));
    }
  }
  test::make_tiny_oq(dir / "other.oq");
  o.input = dir / "other.oq";
  o.output = dir / "x.oq";
  check_says(refusal(o), {"another model"});
}

TEST_CASE("measured ranges are held to all blocks before any work") {
  const TempDir dir;
  test::to_oq(test::golden("families/opt"), dir / "in.oq");
  const ModelConfig config = config_of(dir / "in.oq");
  const auto scales = test::golden("omniquant/opt/act_scales.pt");
  const auto says = [&](const fs::path& largest, const fs::path& middle,
                        const ModelConfig& model) -> std::string {
    try {
      calibrate::read_input_ranges(largest, middle, model);
    } catch (const Error& e) {
      return e.what();
    }
    return "read";
  };
  CHECK(says(scales, scales, config) == "read");
  ModelConfig other = config;
  other.blocks = 3;
  check_says(says(scales, "", other), {"act_scales.pt, blocks.2.", "found none", "another model"});
  other = config;
  other.mlp = 60;  // down alone is of another size
  check_says(says(scales, "", other),
             {"act_scales.pt, blocks.0.down", "expected 60, found 58", "another model"});
  // The last block lacks one, of the shifts.
  std::vector<std::pair<std::string, std::string>> items;
  std::vector<std::string> storages;
  const auto add = [&](int block, const std::string& linear, uint64_t size) {
    const std::string own = test::storage("FloatStorage", std::to_string(storages.size()), size);
    items.emplace_back(fmt::format("model.decoder.layers.{}.{}", block, linear),
                       test::tensor(own, 0, {size}, {1}));
    storages.emplace_back(4 * size, '\0');
  };
  for (int block = 0; block < 2; ++block) {
    for (const char* linear : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
      add(block, std::string("self_attn.") + linear, 44);
    }
    add(block, "fc1", 44);
    if (block == 0) add(block, "fc2", 58);
  }
  test::write_file(dir / "shifts.pt", test::torch_bytes(test::pickle(test::dict(items)), storages));
  check_says(says(scales, dir / "shifts.pt", config),
             {"shifts.pt, blocks.1.down", "expected 58, found none"});
}
