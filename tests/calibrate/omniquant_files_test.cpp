/// OmniQuant's own files read: omni_parameters.pth, act_scales.pt and act_shifts.pt, of every
/// family that it knows; bad ones, those of another model, and flags that say something else.

#include <cmath>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/calibrate/omniquant_file.h"
#include "tests/calibrate/small_run.h"
#include "tests/convert/golden_models.h"
#include "tests/process.h"
#include "tests/tiny_oq.h"
#include "tools/calibrate/block.h"
#include "tools/calibrate/parameters.h"

using namespace oq;
using calibrate::Matrix;
using test::check_says;
using test::refusal;
using test::TempDir;
namespace fs = std::filesystem;

namespace {

ModelConfig config_of(const fs::path& model) { return ModelConfig::load(*File::open(model)); }

/// What reading says where it refuses; "read" where it does not.
template <class F>
std::string read_says(F read) {
  try {
    read();
  } catch (const Error& e) {
    return e.what();
  }
  return "read";
}

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
  const ModelConfig config = test::tiny_config();
  const auto says = [&](const std::string& bytes) {
    test::write_file(dir / "x.pth", bytes);
    return read_says([&] { calibrate::read_parameters(dir / "x.pth", config); });
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
  for (const std::string& name : {upper, std::string("qkv_smooth_scale")}) {
    check_says(says(pth(test::integer(0), {{name, std::vector<float>(120000, 4.0f)}})),
               {"block 0", name.c_str(), "more elements", "found 120000"});
  }
  const std::string sound =
      test::read_file(test::golden("omniquant/llama-bias/omni_parameters.pth"));
  check_says(says(sound), {"multiple of 120"});  // of a model of other sizes
  for (size_t n = 0; n < sound.size(); n += 397) CHECK(says(sound.substr(0, n)) != "read");
}

TEST_CASE("transformations start from OmniQuant's measured ranges") {
  const TempDir dir;
  test::to_oq(test::golden("families/opt"), dir / "in.oq");
  const ModelConfig config = config_of(dir / "in.oq");
  auto o = test::small_run(dir / "in.oq", dir / "learned.oq", "omniquant", "w4a6");
  o.learning.epochs = 0;
  o.learning.faithful = true;
  o.save_parameters = dir / "p.safetensors";
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
  const auto says = [](const fs::path& largest, const fs::path& middle, const ModelConfig& model) {
    return read_says([&] { calibrate::read_input_ranges(largest, middle, model); });
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
  test::OmniQuantFile shifts;
  for (int block = 0; block < 2; ++block) {
    const auto add = [&](const std::string& linear, size_t size) {
      shifts.add(0, fmt::format("model.decoder.layers.{}.{}", block, linear),
                 std::vector<float>(size));
    };
    for (const char* linear : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
      add(std::string("self_attn.") + linear, 44);
    }
    add("fc1", 44);
    if (block == 0) add("fc2", 58);
  }
  test::write_file(dir / "shifts.pt", shifts.ranges());
  check_says(says(scales, dir / "shifts.pt", config),
             {"shifts.pt, blocks.1.down", "expected 58, found none"});
}

namespace {

/// A golden Falcon: its fused linear's rows as the checkpoint has them, and the model made of it.
struct Falcon {
  explicit Falcon(const std::string& name) : source(name) {
    test::to_oq(test::golden("families") / name, dir / "in.oq");
  }

  const test::TinyTensor& linear(int64_t block, const std::string& name) {
    return source[fmt::format("transformer.h.{}.{}.weight", block, name)];
  }
  /// Bounds for `groups` to a row: the upper ones of 1/64 for each row before and group, the lower
  /// ones 2 more.
  void add(int64_t block, const std::string& name, uint64_t groups) {
    std::vector<float> upper(linear(block, name).rows * groups), lower(upper.size());
    for (size_t i = 0; i < upper.size(); ++i) {
      upper[i] = float(i) / 64;
      lower[i] = upper[i] + 2;
    }
    learned.add_bounds(block, name, upper, lower);
  }
  fs::path write(uint64_t groups) {
    for (int64_t block = 0; block < 2; ++block) {
      add(block, "self_attention.query_key_value", groups);
      add(block, "self_attention.dense", groups);
      add(block, "mlp.dense_h_to_4h", groups);
      add(block, "mlp.dense_4h_to_h", groups == 1 ? 1 : 3);  // of 70 columns, where others have 60
    }
    test::write_file(dir / "p.pth", learned.parameters());
    return dir / "p.pth";
  }

  TempDir dir;
  test::HfModel source;
  test::OmniQuantFile learned;
};

/// The row of a source that is the same as ours.
int64_t same_row(const test::TinyTensor& source, std::span<const float> ours) {
  for (uint64_t r = 0; r < source.rows; ++r) {
    const auto row = std::span(source.values).subspan(size_t(r * source.cols), source.cols);
    if (std::equal(row.begin(), row.end(), ours.begin(), ours.end())) return int64_t(r);
  }
  FAIL("there is no such row");
  return -1;
}

}  // namespace

TEST_CASE("bounds of Falcon's fused linear go to the rows of q, k and v that it holds") {
  for (const char* name : {"falcon-7b", "falcon-40b", "falcon-11b", "falcon-rw"}) {
    for (const int64_t groups : {1, 2}) {
      const std::string model = name;
      CAPTURE(model);
      Falcon m(model);
      const auto p =
          calibrate::read_parameters(m.write(uint64_t(groups)), config_of(m.dir / "in.oq"));
      const auto file = File::open(m.dir / "in.oq");
      for (const char* linear : {"q", "k", "v"}) {
        const auto& fused = m.linear(1, "self_attention.query_key_value");
        const TensorInfo& info = file->tensor(fmt::format("blocks.1.{}", linear));
        const Matrix w(int64_t(info.rows), int64_t(info.cols),
                       calibrate::read_tensor(*file, info.name));
        const Matrix& upper = p.blocks[1].at(std::string(linear) + ".upper");
        const Matrix& lower = p.blocks[1].at(std::string(linear) + ".lower");
        REQUIRE(upper.rows() == w.rows());
        REQUIRE(upper.cols() == groups);
        for (int64_t r = 0; r < w.rows(); ++r) {
          const int64_t from = same_row(fused, w.row(r));
          for (int64_t g = 0; g < groups; ++g) {
            CHECK(upper(r, g) == float(from * groups + g) / 64);
            CHECK(lower(r, g) == upper(r, g) + 2);
          }
        }
      }
    }
  }
}

TEST_CASE("Falcon's parameters are applied, and those of another Falcon are refused") {
  for (const char* name : {"falcon-7b", "falcon-40b"}) {
    const std::string model = name;
    CAPTURE(model);
    Falcon m(model);
    calibrate::Options o;
    o.input = m.dir / "in.oq";
    o.output = m.dir / "out.oq";
    o.method = "omniquant";
    o.scheme = Scheme::parse("w3a16g32");
    o.parameters = m.write(2);
    o.threads = 2;
    CHECK(refusal(o) == "calibrated");
    o.scheme = Scheme::parse("w3a16");
    check_says(refusal(o), {"do not fit", "blocks.0.down.upper", "found [60, 3]"});
  }
  Falcon one("falcon-7b");
  Falcon other("falcon-40b");
  const auto config = config_of(other.dir / "in.oq");
  check_says(read_says([&] { calibrate::read_parameters(one.write(1), config); }),
             {"block 0", "self_attention.query_key_value", "a multiple of 100 rows", "found 84"});
  check_says(read_says([&] { calibrate::read_parameters(one.dir / "p.pth", test::tiny_config()); }),
             {"self_attention.query_key_value", "a multiple of 200 rows"});
}

TEST_CASE("Falcon's measured ranges are those of all parts of its fused linear") {
  Falcon m("falcon-40b");
  const auto config = config_of(m.dir / "in.oq");
  const auto ranges = [&](bool complete) {
    test::OmniQuantFile file;
    for (int block = 0; block < 2; ++block) {
      for (const char* name : {"self_attention.query_key_value", "self_attention.dense",
                               "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"}) {
        if (block == 1 && !complete && std::string_view(name).starts_with("self_attention.q")) {
          continue;
        }
        std::vector<float> v(m.linear(block, name).cols);
        for (size_t i = 0; i < v.size(); ++i) v[i] = float(i + 1) / 8 + float(block);
        file.add(0, fmt::format("transformer.h.{}.{}", block, name), v);
      }
    }
    file.add(0, "lm_head", std::vector<float>(60));
    test::write_file(m.dir / "act.pt", file.ranges());
    return m.dir / "act.pt";
  };
  const auto blocks = calibrate::read_input_ranges(ranges(true), ranges(true), config);
  for (const char* name : {"q", "k", "v", "up"}) {
    for (const char* suffix : {".largest", ".middle"}) {
      const Matrix& found = blocks[1].at(std::string(name) + suffix);
      REQUIRE(found.cols() == 60);
      for (int64_t i = 0; i < 60; ++i) CHECK(found(0, i) == float(i + 1) / 8 + 1);
    }
  }
  check_says(read_says([&] { calibrate::read_input_ranges(ranges(false), "", config); }),
             {"act.pt, blocks.1.k", "expected 60, found none"});
}

TEST_CASE("a flag that says something else than a file of OmniQuant's is refused") {
  const TempDir dir;
  const auto with = [&](const char* model, const char* scheme, auto change) {
    test::to_oq(test::golden("families") / model, dir / "in.oq");
    calibrate::Options o;
    o.input = dir / "in.oq";
    o.output = dir / "out.oq";
    o.method = "omniquant";
    o.scheme = Scheme::parse(scheme);
    o.parameters = test::golden("omniquant") / model / "omni_parameters.pth";
    o.threads = 2;
    change(o.learning);
    return refusal(o);
  };
  using L = calibrate::Learning;
  const auto let = [](bool on) {
    return [on](L& l) { l.transform_given = true, l.transform = on; };
  };
  const auto lwc = [](bool on) { return [on](L& l) { l.clip_given = true, l.clip = on; }; };
  check_says(with("llama-bias", "w3a16", let(true)),
             {"omni_parameters.pth", "other options", "expected --let", "found --no-let"});
  check_says(with("opt", "w4a6", let(false)), {"expected --no-let", "found --let"});
  check_says(with("opt", "w4a6", lwc(false)), {"expected --no-lwc", "found --lwc"});
  CHECK(with("opt", "w4a6", let(true)) == "calibrated");
  CHECK(with("llama-bias", "w3a16", let(false)) == "calibrated");
  CHECK(with("llama-bias", "w3a16", lwc(true)) == "calibrated");
  // By default alone, on or off, the file decides.
  CHECK(with("llama-bias", "w3a16", [](L& l) { l.transform = true; }) == "calibrated");
  CHECK(with("opt", "w4a6", [](L& l) { l.transform = l.clip = false; }) == "calibrated");
}

TEST_CASE("oq-calibrate holds --let and --lwc to a file of OmniQuant's where they are given") {
  const TempDir dir;
  test::to_oq(test::golden("families/llama-bias"), dir / "in.oq");
  const auto says = [&](std::vector<std::string> flags) {
    std::vector<std::string> args = {test::tool("oq-calibrate"),
                                     dir / "in.oq",
                                     "-o",
                                     dir / "out.oq",
                                     "--method",
                                     "omniquant",
                                     "--scheme",
                                     "w3a16",
                                     "--quiet",
                                     "--params",
                                     test::golden("omniquant/llama-bias/omni_parameters.pth")};
    args.insert(args.end(), flags.begin(), flags.end());
    const test::ProcessResult r = test::run(args);
    return fmt::format("{} {}", r.code, r.err);
  };
  check_says(says({"--let"}), {"1 ", "expected --let", "found --no-let"});
  check_says(says({"--no-lwc"}), {"1 ", "expected --no-lwc", "found --lwc"});
  CHECK(says({}) == "0 ");
  CHECK(says({"--no-let", "--lwc"}) == "0 ");
}
