// oq-run --chat: one answer, a conversation over a pipe, and Ctrl-C.

#include <chrono>
#include <thread>

#include <poll.h>
#include <pty.h>
#include <signal.h>

#include "tests/tools/tools.h"

using namespace oq;
using namespace oq::test;

namespace {

ProcessResult converse(const std::string& lines, std::vector<std::string> more = {}) {
  std::vector<std::string> args = {models().endless, "--chat", "--temperature", "0", "-n", "6"};
  args.insert(args.end(), more.begin(), more.end());
  return run_oq("run", args, {.input = lines});
}

/// oq-run in the background, with a pipe to talk to it.
class Background {
 public:
  explicit Background(const std::vector<std::string>& args) {
    int ends[2];
    REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
    input_ = ends[1];
    std::vector<std::string> all = {tool("oq-run")};
    all.insert(all.end(), args.begin(), args.end());
    child_ = start(all, dir_.path(), [&] { dup2(ends[0], STDIN_FILENO); });
    close(ends[0]);
  }
  ~Background() {
    if (child_ > 0) kill(child_, SIGKILL);
    if (child_ > 0) wait_for(child_);
    close(input_);
  }

  void type(const std::string& line) {
    REQUIRE(write(input_, line.data(), line.size()) == ssize_t(line.size()));
  }
  void interrupt() { kill(child_, SIGINT); }
  std::string out() const { return read_file(dir_ / "stdout"); }
  std::string err() const { return read_file(dir_ / "stderr"); }

  /// Waits until stdout has more than `bytes` bytes and `text` among those after them.
  bool shows(const std::string& text, size_t bytes = 0) const {
    for (int i = 0; i < 30'000; ++i) {
      const std::string now = out();
      if (now.size() > bytes && now.find(text, bytes) != std::string::npos) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }
  int finish() {
    const int code = wait_for(child_);
    child_ = -1;
    return code;
  }

 private:
  TempDir dir_;
  int input_ = -1;
  pid_t child_ = -1;
};

/// oq-run on a terminal of its own.
class Terminal {
 public:
  explicit Terminal(std::vector<std::string> args) {
    args.insert(args.begin(), tool("oq-run"));
    std::vector<char*> argv;
    for (std::string& a : args) argv.push_back(a.data());
    argv.push_back(nullptr);
    setenv("XDG_STATE_HOME", home_.path().c_str(), 1);
    setenv("TERM", "dumb", 1);
    child_ = forkpty(&terminal_, nullptr, nullptr, nullptr);
    if (child_ == 0) {
      execv(argv[0], argv.data());
      _exit(127);
    }
  }
  ~Terminal() {
    if (child_ > 0) kill(child_, SIGKILL);
    finish();
    close(terminal_);
  }

  void type(const std::string& keys) {
    REQUIRE(write(terminal_, keys.data(), keys.size()) == ssize_t(keys.size()));
  }
  /// Reads on until `text` has come, `bytes` bytes after what was found before.
  bool shows(const std::string& text, size_t bytes = 0) {
    while (seen_.size() < bytes || seen_.find(text, bytes) == std::string::npos) {
      pollfd ready = {terminal_, POLLIN, 0};
      char buffer[4096];
      if (poll(&ready, 1, 30'000) <= 0) return false;
      const ssize_t n = read(terminal_, buffer, sizeof(buffer));
      if (n <= 0) return false;
      seen_.append(buffer, size_t(n));
    }
    seen_.erase(0, seen_.find(text, bytes) + text.size());
    return true;
  }
  /// Ctrl-C at a prompt. Whether it is seen as one depends on how far the prompt has come.
  void interrupt_prompt() {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    type("\x03");
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  std::string history() const { return read_file(home_ / "oq/history"); }
  int finish() {
    const int code = child_ > 0 ? wait_for(child_) : 0;
    child_ = -1;
    return code;
  }

 private:
  TempDir home_;
  std::string seen_;
  int terminal_ = -1;
  pid_t child_ = -1;
};

}  // namespace

TEST_CASE("--chat -p answers one message, in the template that is asked for") {
  const Models& m = models();
  const auto answer = [&](const std::vector<std::string>& more) {
    std::vector<std::string> args = {m.f16, "--chat",        "-p", "hello", "-n",
                                     "12",  "--temperature", "0"};
    args.insert(args.end(), more.begin(), more.end());
    return oq_json("run", args);
  };
  const auto own = answer({});
  CHECK(answer({})["tokens"] == own["tokens"]);
  CHECK(answer({"--template", "chatml"})["tokens"] == own["tokens"]);
  const auto llama2 = answer({"--template", "llama2"});
  CHECK(llama2["prompt_tokens"] != own["prompt_tokens"]);
  CHECK(answer({"--system", "be brief"})["prompt_tokens"] > own["prompt_tokens"]);
  const auto plain = oq_json("run", {m.f16, "-p", "hello", "-n", "12"});
  CHECK(plain["prompt_tokens"] == 1);

  const auto unknown = m.dir / "unknown-template.oq";
  copy_changed(m.f16, unknown, {.metadata = [](Metadata& metadata) {
                 metadata.set("chat.template", std::string("unknown"));
               }});
  check_fails("run", {unknown, "--chat", "-p", "hello"},
              {"unknown-template.oq", "--template", "chatml"});
  // Before weights are loaded: neither a device nor a context is asked for.
  check_fails("run", {unknown, "--chat", "-p", "hello", "--ctx", "1000000"},
              {"unknown-template.oq", "--template", "chatml"});
  CHECK(run_oq("run", {unknown, "--chat", "-p", "hello", "-n", "2", "--template", "chatml"}).code ==
        0);
  const ProcessResult bad = run_oq("run", {m.f16, "--chat", "-p", "x", "--template", "morse"});
  CHECK(bad.code == 2);
  CHECK(bad.err.find("chatml") != std::string::npos);
}

TEST_CASE("a conversation over a pipe obeys its commands") {
  const ProcessResult twice = converse("hello\n/reset\nhello\n");
  CHECK(twice.code == 0);
  const std::string reset = "(conversation forgotten)\n";
  const size_t cut = twice.out.find(reset);
  REQUIRE(cut != std::string::npos);
  CHECK(cut > 1);
  CHECK(twice.out.substr(cut + reset.size()) == twice.out.substr(0, cut));

  // Without /reset, the second answer follows on the first turn.
  const ProcessResult on = converse("hello\nhello\n");
  CHECK(on.out.find(twice.out.substr(0, cut)) == 0);
  CHECK(on.out != twice.out.substr(0, cut) + twice.out.substr(0, cut));

  const ProcessResult commands =
      converse("/help\n\n  \nhello\n/stats\n/system be brief\nhello\n/quit\nnever read\n");
  CHECK(commands.code == 0);
  CHECK(commands.out.find("/system TEXT") != std::string::npos);
  CHECK(commands.out.find("decode 6 tokens") != std::string::npos);
  CHECK(commands.out.find("(system message set; conversation forgotten)\n") != std::string::npos);
  CHECK(commands.err.find("decode 12 tokens") != std::string::npos);  // two answers, not three
  CHECK(converse("").code == 0);
  CHECK(converse("hello", {"--quiet"}).err.empty());  // no newline at the end of the input
}

TEST_CASE("a turn that does not fit is refused, and the conversation goes on") {
  const std::string word = " house";
  std::string much;
  for (int i = 0; i < 200; ++i) much += word;
  const ProcessResult r = converse("hello\n" + much + "\n/reset\nhello\n", {"--ctx", "64"});
  CHECK(r.code == 0);
  CHECK(r.err.find("does not fit the context") != std::string::npos);
  CHECK(r.err.find("--ctx") != std::string::npos);
  CHECK(r.err.find("decode 12 tokens") != std::string::npos);
}

TEST_CASE("a full context forgets the oldest turns, and says so") {
  std::string lines;
  for (int i = 0; i < 12; ++i) lines += "hello\n";
  const ProcessResult r = converse(lines, {"--ctx", "96"});
  CHECK(r.code == 0);
  CHECK(r.err.find("turns are forgotten") != std::string::npos);
  CHECK(r.err.find("decode 72 tokens") != std::string::npos);  // twelve answers
  CHECK(r.err.find("fills the context") == std::string::npos);

  const ProcessResult alone =
      run_oq("run", {models().endless, "--chat", "--temperature", "0", "-n", "-1", "--ctx", "64"},
             {.input = "hello\n"});
  CHECK(alone.code == 0);
  CHECK(alone.err.find("the answer fills the context") != std::string::npos);
  CHECK(alone.err.find("forgotten") == std::string::npos);
}

TEST_CASE("a chat says which template and stops are in force") {
  const ProcessResult r = converse("hello\n", {"--template", "plain", "--stop", "\x01\"end"});
  CHECK(r.err.find(
            R"(template plain, stop tokens 2 <|im_end|>, stop strings "\nUser:", "\u0001\"end")") !=
        std::string::npos);
  const ProcessResult chatml = converse("hello\n", {"--template", "chatml"});
  CHECK(chatml.err.find("template chatml, stop tokens 2 <|im_end|>, 0 <|endoftext|>\n") !=
        std::string::npos);
  CHECK(converse("hello", {"--template", "chatml", "--quiet"}).err.empty());
}

TEST_CASE("Ctrl-C stops the answer and not the program") {
  Background chat({models().endless, "--chat", "--temperature", "0", "-n", "-1", "--ctx", "65536",
                   "--threads", "1"});
  chat.type("hello\n");
  REQUIRE(chat.shows("", 2000));  // an answer that has no end
  chat.interrupt();
  REQUIRE(chat.shows("\n(stopped)\n", 2000));
  size_t seen = chat.out().size();
  chat.type("/stats\n");
  REQUIRE(chat.shows("tokens/s", seen));
  seen = chat.out().size();
  chat.type("and again\n");  // the conversation goes on
  REQUIRE(chat.shows("", seen + 2000));
  chat.interrupt();
  REQUIRE(chat.shows("\n(stopped)\n", seen + 2000));
  chat.type("/quit\n");
  CHECK(chat.finish() == 0);
}

TEST_CASE("Ctrl-C ends a single answer with what there is of it") {
  Background run({models().endless, "-p", "hello", "-n", "-1", "--ctx", "65536", "--threads", "1"});
  REQUIRE(run.shows("", 2000));
  run.interrupt();
  CHECK(run.finish() == 0);
  CHECK(run.out().back() == '\n');
  CHECK(run.err().find("logits ") != std::string::npos);
}

TEST_CASE(
    "on a terminal, Ctrl-C stops answers, is nothing at the prompt, and lines are remembered") {
  Terminal chat({models().endless, "--chat", "--temperature", "0", "-n", "-1", "--ctx", "65536",
                 "--threads", "1"});
  REQUIRE(chat.shows("> "));
  chat.interrupt_prompt();
  for (const char* line : {"hello\n", "and again\n"}) {
    chat.type(line);
    REQUIRE(chat.shows("", 2000));
    chat.type("\x03");
    REQUIRE(chat.shows("(stopped)"));
    REQUIRE(chat.shows("> "));
    chat.interrupt_prompt();
  }
  chat.type("/stats\n");
  REQUIRE(chat.shows("tokens/s"));
  chat.type("/quit\n");
  CHECK(chat.finish() == 0);
  CHECK(chat.history().find("hello") != std::string::npos);
  CHECK(chat.history().find("/stats") != std::string::npos);
}
