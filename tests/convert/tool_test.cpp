// oq-convert as a program: exit codes, memory, and everything that can happen to its output.

#include <thread>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>
#include <signal.h>
#include <sys/resource.h>

#include "format/file.h"
#include "tests/process.h"
#include "tests/tiny_model.h"

using namespace oq;
using test::ProcessResult;
using test::TempDir;

namespace {

namespace fs = std::filesystem;

ProcessResult oq_convert(std::vector<std::string> args, const std::function<void()>& before = {}) {
  args.insert(args.begin(), test::tool("oq-convert"));
  return test::run(args, before);
}

/// One line, beginning with the tool's name.
void check_message(const std::string& err, const char* says) {
  CAPTURE(err);
  CHECK(err.find("oq-convert: ") == 0);
  CHECK(err.find('\n') == err.size() - 1);
  CHECK(err.find(says) != std::string::npos);
}

/// A LLaMA of 72 million zeros as F32 safetensors (288 MB, but holes on the disk). Its largest
/// tensor has 4 million weights.
constexpr uint64_t kLargestBytes = 4096 * 1024 * 4;

void write_hollow_model(const fs::path& folder) {
  constexpr uint64_t kHidden = 1024, kMlp = 4096, kBlocks = 4, kVocab = 1000;
  nlohmann::json header = nlohmann::json::object();
  uint64_t end = 0;
  const auto add = [&](const std::string& name, std::vector<uint64_t> shape) {
    uint64_t bytes = 4;
    for (uint64_t n : shape) bytes *= n;
    header[name + ".weight"] = {
        {"dtype", "F32"}, {"shape", shape}, {"data_offsets", {end, end + bytes}}};
    end += bytes;
  };
  add("model.embed_tokens", {kVocab, kHidden});
  for (uint64_t b = 0; b < kBlocks; ++b) {
    const std::string block = "model.layers." + std::to_string(b) + ".";
    for (const char* n : {"input_layernorm", "post_attention_layernorm"}) add(block + n, {kHidden});
    for (const char* n : {"q", "k", "v", "o"}) {
      add(block + "self_attn." + n + "_proj", {kHidden, kHidden});
    }
    for (const char* n : {"gate", "up"}) add(block + "mlp." + n + "_proj", {kMlp, kHidden});
    add(block + "mlp.down_proj", {kHidden, kMlp});
  }
  add("model.norm", {kHidden});
  fs::create_directories(folder);
  const nlohmann::json config = {{"model_type", "llama"},           {"vocab_size", kVocab},
                                 {"hidden_size", kHidden},          {"intermediate_size", kMlp},
                                 {"num_hidden_layers", kBlocks},    {"num_attention_heads", 16},
                                 {"max_position_embeddings", 2048}, {"tie_word_embeddings", true}};
  test::write_file(folder / "config.json", config.dump());
  const std::string text = header.dump();
  const uint64_t length = text.size();
  test::write_file(folder / "model.safetensors",
                   std::string(reinterpret_cast<const char*>(&length), 8) + text);
  fs::resize_file(folder / "model.safetensors", 8 + length + end);
}

std::function<void()> limit(int resource, uint64_t value) {
  return [=] {
    const rlimit l = {value, value};
    setrlimit(resource, &l);
  };
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif
#else
constexpr bool kSanitized = false;
#endif

}  // namespace

TEST_CASE("exit code 0: help, version, and a job done") {
  const TempDir dir;
  CHECK(oq_convert({"--help"}).code == 0);
  CHECK(oq_convert({"--help"}).out.find("--head-bits") != std::string::npos);
  const ProcessResult version = oq_convert({"--version"});
  CHECK(version.code == 0);
  CHECK(version.out.find("oq-convert ") == 0);

  test::write_tiny_hf(dir / "model", 1);
  const ProcessResult done = oq_convert(
      {dir / "model", "-o", dir / "out.oq", "--scheme", "w4a16g64", "--json", "--quiet"});
  CHECK(done.code == 0);
  CHECK(done.err.empty());
  const auto json = nlohmann::json::parse(done.out);
  CHECK(json["scheme"] == "w4a16g64");
  CHECK(json["bytes"] == fs::file_size(dir / "out.oq"));
  CHECK_NOTHROW(File::open(dir / "out.oq")->verify());

  // A path is bytes, and JSON is UTF-8.
  const ProcessResult odd = oq_convert({dir / "model", "-o", dir / "\xFF.oq", "--json", "--quiet"});
  CHECK(odd.code == 0);
  CHECK(odd.err.empty());
  CHECK(nlohmann::json::parse(odd.out)["output"] == (dir / "\xEF\xBF\xBD.oq").string());
}

TEST_CASE("exit code 1: the job failed, and one line says why") {
  const TempDir dir;
  const ProcessResult absent = oq_convert({dir / "absent", "-o", dir / "out.oq"});
  CHECK(absent.code == 1);
  check_message(absent.err, "does not exist");

  test::write_tiny_gguf(dir / "model.gguf", 1);
  const ProcessResult nowhere = oq_convert({dir / "model.gguf", "-o", dir / "no/such/out.oq"});
  CHECK(nowhere.code == 1);
  check_message(nowhere.err, "No such file or directory");
  const ProcessResult folder = oq_convert({dir / "model.gguf", "-o", dir.path()});
  CHECK(folder.code == 1);
  check_message(folder.err, "not a regular file");
  const ProcessResult itself = oq_convert({dir / "model.gguf", "-o", dir / "model.gguf"});
  CHECK(itself.code == 1);
  check_message(itself.err, "the checkpoint itself");

  test::write_file(dir / "line\nbreak", "x");
  const ProcessResult line = oq_convert({dir / "line\nbreak", "-o", dir / "out.oq"});
  CHECK(line.code == 1);
  check_message(line.err, "not a GGUF file");
}

TEST_CASE("exit code 2: wrong usage") {
  const TempDir dir;
  const std::string source = dir / "model.gguf", out = dir / "out.oq";
  test::write_tiny_gguf(source, 1);
  CHECK(oq_convert({}).code == 2);
  CHECK(oq_convert({source}).code == 2);
  CHECK(oq_convert({source, "-o", out, "--scheme", "w9"}).code == 2);
  CHECK(oq_convert({source, "-o", out, "--dtype", "f64"}).code == 2);
  CHECK(oq_convert({source, "-o", out, "--threads", "0"}).code == 2);
  CHECK(oq_convert({source, "-o", out, "--no-such-flag"}).code == 2);
  CHECK(oq_convert({source, "-o", out, "--scheme", "w4a16", "--head-bits", "5"}).code == 2);
  const ProcessResult head = oq_convert({source, "-o", out, "--head-bits", "6"});
  CHECK(head.code == 2);
  CHECK(head.err.find("--scheme") != std::string::npos);
  CHECK_FALSE(fs::exists(out));
}

TEST_CASE("a full disk is a message, and the old file stays") {
  const TempDir dir;
  test::write_tiny_gguf(dir / "model.gguf", 1);
  test::write_file(dir / "out.oq", "as it was");
  for (const uint64_t bytes : {0, 4096, 100'000, 500'000}) {
    CAPTURE(bytes);
    if (bytes == 0 && kSanitized) continue;  // TSan's runtime writes before main can say otherwise
    const ProcessResult full =
        oq_convert({dir / "model.gguf", "-o", dir / "out.oq"}, limit(RLIMIT_FSIZE, bytes));
    CHECK(full.code == 1);
    // With no room at all, not even the message has a place to go.
    if (bytes > 0) check_message(full.err, "free some space");
    CHECK(test::read_file(dir / "out.oq") == "as it was");
    CHECK_FALSE(fs::exists(dir / "out.oq.part"));
  }
}

TEST_CASE("killed in the middle of writing, the old file stays") {
  const TempDir dir;
  write_hollow_model(dir / "model");
  test::write_file(dir / "out.oq", "as it was");
  const fs::path part = dir / "out.oq.part";
  const pid_t child =
      test::start({test::tool("oq-convert"), dir / "model", "-o", dir / "out.oq", "--threads", "1"},
                  dir.path());
  const auto written = [&] {
    std::error_code absent;
    const auto bytes = fs::file_size(part, absent);
    return absent ? 0 : bytes;
  };
  for (int i = 0; i < 20'000 && written() < (8 << 20); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  kill(child, SIGKILL);
  CHECK(test::wait_for(child) == -SIGKILL);
  CHECK(test::read_file(dir / "out.oq") == "as it was");
  REQUIRE(fs::exists(part));
  CHECK_THROWS_AS(File::open(part), Error);  // a half file does not load

  // The next run takes over from what is left.
  const ProcessResult again =
      oq_convert({dir / "model", "-o", dir / "out.oq", "--scheme", "w4a16g64", "--quiet"});
  CHECK(again.code == 0);
  CHECK_FALSE(fs::exists(part));
  CHECK_NOTHROW(File::open(dir / "out.oq")->verify());
}

TEST_CASE("memory stays near one tensor, whatever the model's size") {
  if (kSanitized) return;  // sanitizers have memory of their own
  const TempDir dir;
  write_hollow_model(dir / "model");
  // The promise is 1.5 times the largest tensor plus 200 MB; the model is 288 MB, so hold it to
  // less.
  const uint64_t most = kLargestBytes * 3 / 2 + (48 << 20);
  for (const char* scheme : {"w16a16", "w4a16g64", "w8a16"}) {
    CAPTURE(scheme);
    const ProcessResult r = oq_convert(
        {dir / "model", "-o", dir / "out.oq", "--scheme", scheme, "--threads", "2", "--quiet"},
        limit(RLIMIT_DATA, most));
    CAPTURE(r.err);
    CHECK(r.code == 0);
  }
}
