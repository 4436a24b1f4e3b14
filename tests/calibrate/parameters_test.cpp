/// Learned parameters apart from the model: saved, applied without training, refused where they do
/// not belong.

#include "tools/calibrate/parameters.h"

#include <cmath>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/calibrate/small_run.h"
#include "tests/tiny_oq.h"
#include "tests/variants.h"

using namespace oq;
using test::check_says;
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
  check_says(with([](O& x) { x.method = "gptq"; }), {"omniquant or abq"});
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
