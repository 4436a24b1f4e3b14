/// Runs that do not come to their end: killed, or stopped by a number that is none.

#include <chrono>
#include <csignal>
#include <limits>
#include <thread>

#include <doctest/doctest.h>

#include "tests/calibrate/small_run.h"
#include "tests/process.h"
#include "tests/tiny_oq.h"

using namespace oq;
using namespace oq::test;
namespace fs = std::filesystem;

namespace {

constexpr std::chrono::milliseconds kOfTheNext{20};  ///< well inside the next block's learning

std::vector<std::string> arguments(const fs::path& in, const fs::path& out) {
  return {tool("oq-calibrate"), in,         "-o",        out,    "--method",  "gptq",
          "--scheme",           "w3a16g64", "--text",    "self", "--windows", "6",
          "--window",           "48",       "--threads", "2",    "--quiet"};
}

/// Waits for a file while a process runs; false when that has ended.
bool wait_for_file(const fs::path& path, pid_t process) {
  while (!fs::exists(path)) {
    int status = 0;
    if (waitpid(process, &status, WNOHANG) != 0) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

/// Starts a run that is killed `later` than the moment when it has finished a block.
void kill_behind(const std::vector<std::string>& args, const TempDir& dir, const fs::path& block,
                 std::chrono::milliseconds later = {}) {
  const pid_t child = start(args, dir.path());
  REQUIRE(wait_for_file(block, child));
  std::this_thread::sleep_for(later);
  kill(child, SIGKILL);
  REQUIRE(wait_for(child) == -SIGKILL);
}

/// Puts `value` in the middle of a tensor of a finished file.
template <class T>
void overwrite(const fs::path& path, const std::string& tensor, T value) {
  const auto file = File::open(path);
  const TensorInfo& t = file->tensor(tensor);
  std::string bytes = read_file(path);
  const uint64_t at = t.offset + t.elements() / 2 * sizeof(T);
  std::memcpy(bytes.data() + at, &value, sizeof(T));
  write_file(path, bytes);
}

}  // namespace

TEST_CASE("a killed run that is resumed comes to the bytes of one that was not") {
  const TempDir dir;
  TinyOq tiny;
  tiny.config.blocks = 20;
  make_tiny_oq(dir / "in.oq", tiny);
  const ProcessResult whole = run(arguments(dir / "in.oq", dir / "whole.oq"));
  REQUIRE_MESSAGE(whole.code == 0, whole.err);

  auto args = arguments(dir / "in.oq", dir / "killed.oq");
  for (const char* block : {"block-0002.oq", "block-0011.oq"}) {  // twice, the second one resumed
    kill_behind(args, dir, dir / "killed.oq.work" / block);
    CHECK_FALSE(fs::exists(dir / "killed.oq"));
    if (args.back() != "--resume") args.emplace_back("--resume");
  }
  const ProcessResult resumed = run(args);
  REQUIRE_MESSAGE(resumed.code == 0, resumed.err);
  CHECK(read_file(dir / "killed.oq") == read_file(dir / "whole.oq"));
  CHECK_FALSE(fs::exists(dir / "killed.oq.work"));
}

TEST_CASE("learning that is killed in the middle of a block is resumed to the same bytes") {
  const TempDir dir;
  TinyOq tiny;
  tiny.config.blocks = 3;
  make_tiny_oq(dir / "in.oq", tiny);
  const auto learn = [&](const fs::path& out) {
    auto args = arguments(dir / "in.oq", out);
    args[5] = "omniquant";
    for (const char* more : {"--epochs", "40", "--save-params"}) args.emplace_back(more);
    args.push_back(out.string() + ".safetensors");
    return args;
  };
  const ProcessResult whole = run(learn(dir / "whole.oq"));
  REQUIRE_MESSAGE(whole.code == 0, whole.err);

  auto args = learn(dir / "killed.oq");
  for (const char* block : {"block-0000.oq", "block-0001.oq"}) {
    kill_behind(args, dir, dir / "killed.oq.work" / block, kOfTheNext);
    CHECK_FALSE(fs::exists(dir / "killed.oq"));
    CHECK_FALSE(fs::exists(dir / "killed.oq.work/block-0002.oq"));
    if (args.back() != "--resume") args.emplace_back("--resume");
  }
  const ProcessResult resumed = run(args);
  REQUIRE_MESSAGE(resumed.code == 0, resumed.err);
  CHECK(read_file(dir / "killed.oq") == read_file(dir / "whole.oq"));
  CHECK(read_file(dir / "killed.oq.safetensors") == read_file(dir / "whole.oq.safetensors"));
}

TEST_CASE("a killed search for the best of all methods is resumed to the same bytes") {
  const TempDir dir;
  TinyOq tiny;
  tiny.config.blocks = 3;
  make_tiny_oq(dir / "in.oq", tiny);
  const auto search = [&](const fs::path& out) {
    auto args = arguments(dir / "in.oq", out);
    args[5] = "auto";
    args[11] = "8";  // windows: with one of first tokens nine, one of which is judged by
    for (const char* more : {"--epochs", "2", "--first-tokens"}) args.emplace_back(more);
    return args;
  };
  const ProcessResult whole = run(search(dir / "whole.oq"));
  REQUIRE_MESSAGE(whole.code == 0, whole.err);

  auto args = search(dir / "killed.oq");
  kill_behind(args, dir, dir / "killed.oq.work/block-0000.oq", kOfTheNext);
  CHECK_FALSE(fs::exists(dir / "killed.oq"));
  CHECK_FALSE(fs::exists(dir / "killed.oq.work/block-0002.oq"));
  args.emplace_back("--resume");
  const ProcessResult resumed = run(args);
  REQUIRE_MESSAGE(resumed.code == 0, resumed.err);
  CHECK(read_file(dir / "killed.oq") == read_file(dir / "whole.oq"));
}

TEST_CASE("a weight or an input that is not finite is named") {
  const TempDir dir;
  const auto run_of = [&](const fs::path& in, const std::string& method) {
    return small_run(in, dir / "out.oq", method, method == "awrq" ? "w4a8" : "w4a16");
  };
  for (const char* method : {"rtn", "gptq", "owq", "awrq", "omniquant"}) {
    CAPTURE(method);
    make_tiny_oq(dir / "weight.oq");
    overwrite(dir / "weight.oq", "blocks.1.up", f16{0x7e00});
    const std::string weight = refusal(run_of(dir / "weight.oq", method));
    CAPTURE(weight);
    CHECK(weight.find("blocks.1.up") != std::string::npos);
    CHECK(weight.find("finite") != std::string::npos);

    if (std::string(method) == "rtn") continue;  // which sees no input
    make_tiny_oq(dir / "norm.oq");
    overwrite(dir / "norm.oq", "blocks.1.mlp_norm", std::numeric_limits<float>::infinity());
    const std::string norm = refusal(run_of(dir / "norm.oq", method));
    CAPTURE(norm);
    CHECK(norm.find("blocks.1.") != std::string::npos);
    CHECK(norm.find("finite") != std::string::npos);
    CHECK_FALSE(fs::exists(dir / "out.oq"));
  }
}
