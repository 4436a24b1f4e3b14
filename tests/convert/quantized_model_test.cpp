// Whole models that others have quantized, from their folders to logits: those of HF transformers
// on the dequantized weights (golden/make_quantized.py).

#include <cmath>

#include <doctest/doctest.h>

#include "runtime/decoder.h"
#include "tests/convert/quantized_folder.h"
#include "tests/process.h"
#include "tools/convert/convert.h"

using namespace oq;
using test::QuantizedFolder;
using test::TempDir;

namespace {

namespace fs = std::filesystem;

std::shared_ptr<const File> run(const fs::path& source, const fs::path& output,
                                convert::Options options = {}) {
  options.source = source;
  options.output = output;
  options.threads = 2;
  convert::convert(options);
  auto file = File::open(output);
  file->verify();
  return file;
}

void check_logits(const std::shared_ptr<const File>& file, const std::string& kind, float most) {
  const auto truth = convert::read_json(test::golden("quantized/" + kind + "/logits.json"));
  const auto ids = truth["ids"].get<std::vector<int32_t>>();
  Decoder decoder(file, make_cpu_backend(1), {.context = 16, .exact = true});
  for (size_t n = 0; n < ids.size(); ++n) {
    const auto logits = decoder.feed(std::span(ids).subspan(n, 1));
    const auto expected = truth["logits"][n].get<std::vector<float>>();
    REQUIRE(logits.size() == expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      REQUIRE(std::fabs(logits[i] - expected[i]) <= most);
    }
  }
}

std::string refusal(const fs::path& source, const convert::Options& options = {}) {
  const TempDir dir;
  try {
    run(source, dir / "out.oq", options);
    return {};
  } catch (const Error& e) {
    CHECK_FALSE(fs::exists(dir / "out.oq"));
    return e.what();
  }
}

bool says(const std::string& text, const char* part) {
  CAPTURE(text);
  CAPTURE(part);
  const bool found = text.find(part) != std::string::npos;
  CHECK(found);
  return found;
}

}  // namespace

TEST_CASE("quantized checkpoints give the logits of their dequantized weights") {
  const struct {
    const char *kind, *scheme, *method;
  } kModels[] = {{"gptq", "w4sa16g32", "gptq"},
                 {"bloom", "w3a16g32", "gptq_v2"},
                 {"awq", "w4a16g64", "awq"},
                 {"owq", "w3a16", "owq"}};
  for (const auto& m : kModels) {
    CAPTURE(m.kind);
    const TempDir dir;
    const auto file = run(test::golden(std::string("quantized/") + m.kind), dir / "out.oq");
    CHECK(file->metadata().get<std::string>("scheme") == m.scheme);
    CHECK(file->metadata().get<std::string>("source.method") == m.method);
    CHECK(file->metadata().get<int64_t>("head_bits") == 16);
    for (const TensorSpec& spec : tensor_specs(ModelConfig::load(*file))) {
      CAPTURE(spec.name);
      CHECK((file->tensor(spec.name).kind == Kind::packed) == (spec.role == Role::linear));
    }
    check_logits(file, m.kind, 1e-4f);
  }
}

TEST_CASE("the .pth of OWQ by its own name, beside other weights") {
  const TempDir dir;
  fs::copy(test::golden("quantized/owq"), dir / "model");
  test::write_file(dir / "model/model.safetensors", "weights that are not looked at");
  const auto file = run(dir / "model/tiny-w3.pth", dir / "out.oq");
  CHECK(file->tensor("blocks.0.q").packing.weak_columns == 4);
  check_logits(file, "owq", 1e-4f);
  fs::remove(dir / "model/config.json");
  says(refusal(dir / "model/tiny-w3.pth"), "folder of the model");
  fs::remove(dir / "model/model.safetensors");
  fs::copy(dir / "model/tiny-w3.pth", dir / "model/second.pth");
  says(refusal(dir / "model"), "several .pth files");
}

TEST_CASE("embedding and head stay as they are, unless --head-bits is given") {
  const TempDir dir;
  convert::Options options;
  options.head_bits = 8;
  const auto file = run(test::golden("quantized/gptq"), dir / "out.oq", options);
  CHECK(file->metadata().get<int64_t>("head_bits") == 8);
  CHECK(file->tensor("head").packing.bits == 8);
  CHECK(file->tensor("embedding").kind == Kind::packed);
  CHECK(file->tensor("blocks.0.q").packing.bits == 4);
  options.head_bits.reset();
  options.dtype = Kind::bf16;
  CHECK(run(test::golden("quantized/gptq"), dir / "b.oq", options)->tensor("head").kind ==
        Kind::bf16);
}

TEST_CASE("a quantized head is taken over too") {
  QuantizedFolder folder("gptq");
  const std::string from = "model.layers.0.mlp.gate_proj.";  // [96, 64]: as good a head as any
  folder.config["vocab_size"] = 96;
  auto& embedding = folder.tensor("model.embed_tokens.weight");
  embedding.shape[0] = 96;
  embedding.bytes += embedding.bytes;
  folder.tensors.erase("lm_head.weight");
  for (const char* part : {"qweight", "qzeros", "scales", "g_idx"}) {
    folder.tensors["lm_head." + std::string(part)] = folder.tensor(from + part);
  }
  const auto file = run(folder.write(), folder / "out.oq");
  CHECK(file->tensor("head").packing == file->tensor("blocks.0.gate").packing);
  const auto head = file->data(file->tensor("head"));
  const auto gate = file->data(file->tensor("blocks.0.gate"));
  CHECK(std::equal(head.begin(), head.end(), gate.begin(), gate.end()));
}

TEST_CASE("nothing is quantized twice") {
  convert::Options options;
  for (const char* scheme : {"w3a16", "w16a16", "w4a16g32", "w4sa16g64", "w4sa8g32"}) {
    options.scheme = Scheme::parse(scheme);
    const std::string text = refusal(test::golden("quantized/gptq"), options);
    says(text, "quantized already");
    says(text, "w4sa16g32");
  }
  options.scheme = Scheme::parse("w4sa16g32");
  CHECK(refusal(test::golden("quantized/gptq"), options).empty());
}

TEST_CASE("biases: those of the model are kept, zeros of the packer are not") {
  QuantizedFolder folder("gptq");
  const std::string bias = "model.layers.0.mlp.up_proj.bias";
  CHECK(refusal(folder.write()).empty());
  folder.tensor(bias).set<uint16_t>(3, 0x8000);  // minus zero
  CHECK(refusal(folder.write()).empty());
  folder.tensor(bias).set<uint16_t>(3, 0x3C00);
  says(refusal(folder.write()), bias.c_str());
}

TEST_CASE("models whose quantized tensors are not those of the settings") {
  QuantizedFolder folder("awq");
  folder.config["intermediate_size"] = 104;
  says(refusal(folder.write()), "disagrees with the settings");
  folder.config["intermediate_size"] = 96;
  auto removed = folder.tensors.extract("model.layers.0.mlp.up_proj.qweight");
  says(refusal(folder.write()), "up_proj");
  folder.tensors.insert(std::move(removed));
  folder.tensors.erase("model.layers.0.mlp.up_proj.qzeros");
  says(refusal(folder.write()), "'model.layers.0.mlp.up_proj.qzeros' is missing");
  folder.settings()["quant_method"] = "gptq";
  CHECK_FALSE(refusal(folder.write()).empty());
}

TEST_CASE("AutoGPTQ's own name for the weights, and a scale that cannot be kept") {
  QuantizedFolder folder("gptq");
  auto& scales = folder.tensor("model.layers.0.mlp.up_proj.scales");
  folder.write();
  fs::rename(folder / "model.safetensors", folder / "gptq_model-4bit-32g.safetensors");
  const TempDir dir;
  check_logits(run(folder / "", dir / "out.oq"), "gptq", 1e-4f);
  fs::remove(folder / "gptq_model-4bit-32g.safetensors");
  scales.set<uint16_t>(1, 0x7C00);
  const std::string text = refusal(folder.write());
  says(text, "config.json");
  says(text, "'model.layers.0.mlp.up_proj.scales'");
  says(text, "not finite");
}

TEST_CASE("the file does not depend on the threads") {
  const TempDir dir;
  std::string first;
  for (const int threads : {1, 2, 5}) {
    convert::Options options{.source = test::golden("quantized/owq"), .output = dir / "out.oq"};
    options.threads = threads;
    convert::convert(options);
    const std::string bytes = test::read_file(dir / "out.oq");
    if (first.empty()) first = bytes;
    CHECK(bytes == first);
  }
}

TEST_CASE("oq-convert takes quantized folders over, and says why it cannot") {
  const TempDir dir;
  const auto convert = [&](const fs::path& source, std::vector<std::string> more) {
    more.insert(more.begin(), {test::tool("oq-convert"), source, "-o", dir / "out.oq"});
    return test::run(more);
  };
  const fs::path gptq = test::golden("quantized/gptq");
  const auto done = convert(gptq, {"--json"});
  CHECK(done.code == 0);
  CHECK(nlohmann::json::parse(done.out)["scheme"] == "w4sa16g32");
  CHECK(convert(gptq, {"--head-bits", "8"}).code == 0);
  const auto again = convert(gptq, {"--scheme", "w3a16"});
  CHECK(again.code == 1);
  CHECK(again.err.find("oq-convert: ") == 0);
  CHECK(again.err.find("w4sa16g32") != std::string::npos);
  QuantizedFolder folder("gptq");
  folder.settings()["quant_method"] = "fp8";
  const auto other = convert(folder.write(), {});
  CHECK(other.code == 1);
  CHECK(other.err.find("'fp8'") != std::string::npos);
  CHECK(other.err.find('\n') == other.err.size() - 1);
}
