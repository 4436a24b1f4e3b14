// What goes wrong for people: each has its exit code, and a message that names the place and says
// what to do. Checkpoints, oq-convert's output, a full disk and a kill under it are in
// tests/convert.

#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <linux/capability.h>

#include "tests/tools/tools.h"

using namespace oq;
using namespace oq::test;

namespace {

namespace fs = std::filesystem;

/// Every tool that opens a model refuses this one alike.
void check_all_refuse(const std::string& model, const std::vector<std::string>& says) {
  check_fails("run", {model, "-p", "hello"}, says);
  check_fails("eval", {model, "--perplexity", models().text, "--window", "32"}, says);
  check_fails("info", {model, "--json"}, says);
#if defined(OQ_HAVE_BENCH)
  check_fails("bench", {model, "-r", "1", "-p", "8", "-n", "0"}, says);
#endif
}

/// The same for those that decode; oq-info shows such a file as it is.
void check_decoders_refuse(const std::string& model, const std::vector<std::string>& says) {
  check_fails("run", {model, "-p", "hello"}, says);
  check_fails("eval", {model, "--perplexity", models().text, "--window", "32"}, says);
  CHECK(run_oq("info", {model, "--json"}).code == 0);
}

std::function<void()> file_size_limit(rlim_t bytes) {
  return [bytes] {
    const rlimit limit = {bytes, bytes};
    setrlimit(RLIMIT_FSIZE, &limit);
  };
}

void write_to_full_device() { dup2(open("/dev/full", O_WRONLY), STDOUT_FILENO); }

void write_to_closed_pipe() {
  int ends[2];
  if (pipe(ends) != 0) _exit(126);
  dup2(ends[1], STDOUT_FILENO);
  close(ends[0]);
}

}  // namespace

TEST_CASE("--help and --version are answers, wrong usage is exit code 2") {
  const Models& m = models();
  std::vector<std::string> names = {"run", "eval", "info"};
#if defined(OQ_HAVE_BENCH)
  names.push_back("bench");
#endif
  for (const std::string& name : names) {
    CAPTURE(name);
    const auto exits = [&](const std::vector<std::string>& args) {
      return run({tool("oq-" + name)} == args ? args : [&] {
        std::vector<std::string> all = {tool("oq-" + name)};
        all.insert(all.end(), args.begin(), args.end());
        return all;
      }());
    };
    CHECK(exits({"--help"}).code == 0);
    CHECK(exits({"--help"}).out.find("MODEL") != std::string::npos);
    CHECK(exits({"--version"}).code == 0);
    CHECK(exits({"--version"}).out.find("oq-" + name + " ") == 0);
    CHECK(exits({}).code == 2);
    const ProcessResult wrong = exits({m.f16, "--no-such-flag"});
    CHECK(wrong.code == 2);
    CHECK(wrong.err.find("--help") != std::string::npos);
  }
}
