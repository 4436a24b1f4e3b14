// What goes wrong for people: each has its exit code, and a message that names the place and says
// what to do. Checkpoints, oq-convert's output, a full disk and a kill under it are in
// tests/convert.

#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

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
  names.emplace_back("bench");
#endif
  for (const std::string& name : names) {
    CAPTURE(name);
    CHECK(run_oq(name, {"--help"}).code == 0);
    CHECK(run_oq(name, {"--help"}).out.find("MODEL") != std::string::npos);
    CHECK(run_oq(name, {"--version"}).code == 0);
    CHECK(run_oq(name, {"--version"}).out.find("oq-" + name + " ") == 0);
    CHECK(run({tool("oq-" + name)}).code == 2);
    const ProcessResult wrong = run_oq(name, {m.f16, "--no-such-flag"});
    CHECK(wrong.code == 2);
    CHECK(wrong.err.find("--help") != std::string::npos);
  }
  for (const std::vector<std::string>& more :
       std::vector<std::vector<std::string>>{{},
                                             {"-p", "x", "-f", "-"},
                                             {"-p", "x", "-n", "-2"},
                                             {"-p", "x", "--temperature", "-1"},
                                             {"-p", "x", "--temperature", "warm"},
                                             {"-p", "x", "--seed", "-1"},
                                             {"-p", "x", "--top-p", "1.5"},
                                             {"-p", "x", "--top-p", "0"},
                                             {"-p", "x", "--top-p", "nan"},
                                             {"-p", "x", "--min-p", "nan"},
                                             {"-p", "x", "--stop", "end", "--stop", ""},
                                             {"-p", "x", "--ctx", "0"},
                                             {"-p", "x", "--threads", "0"},
                                             {"-p", "x", "--backend", "abacus"},
                                             {"-p", "x", "--system", "be brief"},
                                             {"--chat", "--json"}}) {
    std::vector<std::string> args = {m.f16};
    args.insert(args.end(), more.begin(), more.end());
    CAPTURE(more);
    CHECK(run_oq("run", args).code == 2);
    args[0] = m.f16 + ".absent";  // before the model is looked at
    CHECK(run_oq("run", args).code == 2);
  }
  CHECK(run_oq("eval", {m.f16}).code == 2);
  CHECK(run_oq("eval", {m.f16, "--perplexity", m.text, "--window", "1"}).code == 2);
  CHECK(run_oq("eval", {m.f16, "--perplexity", m.text, "--join", "glue"}).code == 2);
}

TEST_CASE("without a device --backend cuda says so in one line, and auto takes the CPU") {
  const Models& m = models();
  const Setting hidden{.environment = {{"CUDA_VISIBLE_DEVICES", "-1"}}};
  check_fails("run", {m.w4, "-p", "x", "-n", "1", "--quiet", "--backend", "cuda"},
              {"--backend cuda", "--backend cpu"}, hidden);
  const ProcessResult r = run_oq("run", {m.w4, "-p", "x", "-n", "1", "--backend", "auto"}, hidden);
  CHECK(r.code == 0);
  CHECK(r.err.find("cpu, ") != std::string::npos);
#if defined(OQ_HAVE_CUDA)
  CHECK(r.err.find("note: the CPU runs, for no CUDA device can be used") == 0);
  CHECK(r.err.find("the CPU runs", 10) == std::string::npos);
#endif
}

TEST_CASE("what is no .oq file is refused by name") {
  const Models& m = models();
  const TempDir dir;
  const std::string good = read_file(m.w4);
  const std::string bad = dir / "bad.oq";
  check_all_refuse(bad, {"bad.oq", "No such file", "check the path"});
  check_all_refuse(dir.path(), {dir.path(), "not a .oq file", "oq-convert"});
  check_all_refuse(m.gguf, {"model.gguf", "magic", "oq-convert"});
  REQUIRE(mkfifo((dir / "fifo.oq").c_str(), 0600) == 0);
  check_all_refuse(dir / "fifo.oq", {"fifo.oq", "not a .oq file"});
  write_file(bad, "");
  check_all_refuse(bad, {"bad.oq", "not a .oq file"});
  write_file(bad, good.substr(0, good.size() / 2));
  check_all_refuse(bad, {"bad.oq", "wrong size", "convert or copy it again"});
  write_file(bad, good + "more");
  check_all_refuse(bad, {"bad.oq", "wrong size", "convert or copy it again"});

  std::string changed = good;
  changed[8] = char(kVersionMajor + 1);
  write_file(bad, changed);
  check_all_refuse(bad, {"bad.oq", "another version", "use a newer OQ"});
  changed = good;
  changed[80] ^= 1;  // in the metadata
  write_file(bad, changed);
  check_all_refuse(bad, {"bad.oq", "checksum", "damaged"});
}

TEST_CASE("a flipped bit in the weights is found by oq-info --verify") {
  const Models& m = models();
  const TempDir dir;
  const auto file = File::open(m.w4);
  for (const char* name : {"blocks.1.gate", "final_norm", "tokenizer.merges"}) {
    std::string bytes = read_file(m.w4);
    bytes[file->tensor(name).offset + 7] ^= 16;
    write_file(dir / "flipped.oq", bytes);
    check_fails("info", {dir / "flipped.oq", "--verify"},
                {"flipped.oq", std::string("'") + name + "'", "checksum", "again"});
  }
}

TEST_CASE("a tensor that is missing or misshapen is named") {
  const TempDir dir;
  const std::string bad = dir / "bad.oq";
  copy_changed(models().f16, bad,
               {.tensor = [](TensorInfo& t, std::string&) { return t.name != "blocks.1.v"; }});
  check_fails("run", {bad, "-p", "x"}, {"bad.oq", "'blocks.1.v'", "missing", "convert"});
  copy_changed(models().f16, bad, {.tensor = [](TensorInfo& t, std::string&) {
                 if (t.name == "blocks.0.up") std::swap(t.rows, t.cols);
                 return true;
               }});
  check_decoders_refuse(bad, {"bad.oq", "'blocks.0.up'", "[160, 96]", "[96, 160]", "convert"});
  copy_changed(models().f16, bad, {.tensor = [](TensorInfo& t, std::string&) {
                 if (t.name == "final_norm")
                   t = {.name = t.name, .kind = Kind::bytes, .rows = 1, .cols = t.bytes};
                 return true;
               }});
  check_fails("run", {bad, "-p", "x"}, {"bad.oq", "'final_norm'", "[1, 96]", "convert"});
  copy_changed(models().f16, bad, {.tensor = [](TensorInfo& t, std::string&) {
                 return t.name != "tokenizer.tokens";
               }});
  check_decoders_refuse(bad, {"bad.oq", "tokenizer.tokens", "convert"});
}

TEST_CASE("a config that disagrees with itself or the tensors is refused") {
  const TempDir dir;
  const std::string bad = dir / "bad.oq";
  const auto with = [&](const std::string& key, const Metadata::Value& value) {
    copy_changed(models().f16, bad, {.metadata = [&](Metadata& m) { m.set(key, value); }});
  };
  with("model.heads", int64_t(5));
  check_decoders_refuse(bad, {"bad.oq", "heads", "convert"});
  with("model.mlp", int64_t(96));
  check_decoders_refuse(bad, {"bad.oq", "'blocks.0.gate'", "[96, 96]", "[160, 96]", "convert"});
  with("model.blocks", int64_t(4));
  check_decoders_refuse(bad, {"bad.oq", "'blocks.3.attn_norm'", "missing", "convert"});
  with("model.blocks", int64_t(1) << 40);
  check_decoders_refuse(bad, {"bad.oq", "'model.blocks'", "1..4096"});
  with("model.hidden", std::string("96"));
  check_decoders_refuse(bad, {"bad.oq", "'model.hidden'", "integer", "string"});
  with("scheme", std::string("w5a5x"));
  check_decoders_refuse(bad, {"bad.oq", "'w5a5x'", "w4a16g128"});
  with("scheme", true);
  check_decoders_refuse(bad, {"bad.oq", "'scheme'", "string", "bool"});
  with("attention.range", std::string("tensor"));
  check_decoders_refuse(bad, {"bad.oq", "'attention.range'", "head or token", "'tensor'"});
  with("attention.range", int64_t(1));
  check_decoders_refuse(bad, {"bad.oq", "'attention.range'", "string", "integer"});
  with("tokenizer.version", int64_t(99));
  check_decoders_refuse(bad, {"bad.oq", "99", "newer OQ"});
  copy_changed(models().f16, bad, {.metadata = [](Metadata& m) { m.erase("model.head_dim"); }});
  check_decoders_refuse(bad, {"bad.oq", "'model.head_dim'", "missing", "oq-convert"});
}

TEST_CASE("a tokenizer with more ids than the model has rows is refused, not read past") {
  const TempDir dir;
  const std::string bad = dir / "bad.oq";
  copy_changed(models().f16, bad,
               {.metadata = [](Metadata& m) { m.set("model.vocab", int64_t(40)); },
                .tensor =
                    [](TensorInfo& t, std::string& data) {
                      if (t.name == "embedding" || t.name == "head") {
                        t.rows = 40;
                        data.resize(data.size() / 300 * 40);
                      }
                      return true;
                    }});
  check_fails("run", {bad, "-p", "hello"}, {"vocabulary", "0..39"});
  check_fails("eval", {bad, "--perplexity", models().text, "--window", "32"},
              {"bad.oq", "vocabulary", "0..39", "convert"});
}

TEST_CASE("names in a damaged file do not reach the terminal as commands") {
  const TempDir dir;
  const std::string bad = dir / "bad.oq";
  copy_changed(models().f16, bad,
               {.metadata =
                    [](Metadata& m) {
                      m.set("key\x1b[2J", std::string("value\x1b[2J\xff"));
                      m.erase("model.family");
                    },
                .tensor =
                    [](TensorInfo& t, std::string&) {
                      t.name += "\x1b[2J";
                      return true;
                    }});
  for (const char* flag : {"--tensors", "--json"}) {
    const ProcessResult r = run_oq("info", {bad, flag});
    CHECK(r.code == 0);
    CHECK(r.out.find("[2J") != std::string::npos);
    CHECK(r.out.find('\x1b') == std::string::npos);
  }
}

TEST_CASE("texts that are empty, absent or too long") {
  const Models& m = models();
  const TempDir dir;
  check_fails("run", {m.f16, "-p", ""}, {"prompt is empty", "-p or -f"});
  check_fails("run", {m.f16, "-f", "-"}, {"prompt is empty", "-p or -f"});
  check_fails("run", {m.f16, "-f", dir / "absent"}, {"absent", "No such file", "check the path"});
  check_fails("run", {m.f16, "-f", dir.path()}, {dir.path(), "directory", "check the path"});
  check_fails("run", {m.f16, "-f", m.text}, {"does not fit the context", "256", "--ctx"});
  check_fails("run", {m.f16, "-p", "hello the world", "--ctx", "5"},
              {"does not fit the context", "at most 5", "6 more", "--ctx"});
  check_fails("run", {m.f16, "-p", "x", "--ctx", "257"},
              {"f16.oq", "at most 256", "found 257", "smaller --ctx"});

  check_fails("eval", {m.f16, "--perplexity", dir / "absent"}, {"absent", "check the path"});
  check_fails("eval", {m.f16, "--perplexity", m.text}, {"f16.oq", "at most 256", "--window"});
  check_fails("eval", {m.endless, "--perplexity", m.text}, {"text.txt", "2048", "--window"});
  write_file(dir / "empty", "");
  check_fails("eval", {m.f16, "--perplexity", dir / "empty", "--window", "32"},
              {"empty", "found 0", "--window"});
  check_fails("info", {m.f16, "--tokenize", dir / "absent"}, {"absent", "check the path"});
}

TEST_CASE("bytes that are no text are a prompt all the same") {
  const Models& m = models();
  const TempDir dir;
  write_file(dir / "bytes", std::string("\xff\xfe\0\x80 \xc3", 6));
  CHECK(oq_json("run", {m.f16, "-f", dir / "bytes", "-n", "4"})["prompt_tokens"] == 6);
}

TEST_CASE("output that nobody takes is an error") {
  const Models& m = models();
  for (const auto& where : {write_to_full_device, write_to_closed_pipe}) {
    const std::vector<std::string> says = {
        "standard output", where == write_to_full_device ? "No space left" : "Broken pipe"};
    check_fails("run", {m.f16, "-p", "hello"}, says, {.before = where});
    check_fails("run", {m.f16, "-p", "hello", "--json"}, says, {.before = where});
    check_fails("run", {m.f16, "--chat"}, says, {.input = "hello\n", .before = where});
    check_fails("eval", {m.f16, "--perplexity", m.text, "--window", "32"}, says, {.before = where});
    check_fails("info", {m.f16}, says, {.before = where});
    check_fails("info", {m.f16, "--help"}, says, {.before = where});
  }
  const ProcessResult half = run_oq("info", {m.f16, "--json"}, {.before = file_size_limit(400)});
  CHECK(half.code == 1);
  CHECK(half.out.size() == 400);
  CHECK(half.err == "oq-info: standard output: cannot write: File too large\n");
  // Nowhere to complain, but the answer arrived.
  CHECK(run_oq("run", {m.f16, "-p", "hello"},
               {.before = [] { dup2(open("/dev/full", O_WRONLY), STDERR_FILENO); }})
            .code == 0);
}

TEST_CASE("an edit that the disk refuses leaves the old metadata in force") {
  const TempDir dir;
  const std::string path = dir / "model.oq";
  fs::copy(models().f16, path);
  // Not one byte of the new metadata, and half of it.
  for (const rlim_t bytes : {4096, 18 << 10}) {
    check_fails("info", {path, "--set", "chat.template=llama2"},
                {"model.oq", "metadata cannot be written", "File too large", "still in force"},
                {.before = file_size_limit(bytes)});
    CHECK(File::open(path)->metadata().get<std::string>("chat.template") == "chatml");
  }
  check_fails("info", {path, "--verify"}, {"model.oq", "edit was interrupted", "repeat it"});
  CHECK(run_oq("info", {path, "--set", "chat.template=llama2", "--verify"}).code == 0);

  fs::permissions(path, fs::perms::owner_read);
  check_fails("info", {path, "--set", "chat.template=chatml"},
              {"model.oq", "cannot be opened for writing", "Permission denied"}, {.before = [] {
                // Root may write anywhere, but for this.
                prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0);
              }});
}
