// Every tool on a sound model: from checkpoint to tokens, perplexity and throughput.

#include <cmath>

#include "runtime/tokenizer/tokenizer.h"
#include "tests/tools/tools.h"

using namespace oq;
using namespace oq::test;

TEST_CASE("oq-info sums a file up, lists its tensors, and verifies it") {
  const Models& m = models();
  const ProcessResult summary = run_oq("info", {m.w4});
  CHECK(summary.code == 0);
  CHECK(summary.out.find("w4.oq: 0.2 MB, 33 tensors") != std::string::npos);
  CHECK(summary.out.find("4.645 bits per weight") != std::string::npos);  // + f16 scale, 4-bit zero
  CHECK(summary.out.find("model.hidden                 \"96\"") != std::string::npos);
  CHECK(summary.out.find("blocks.0.q") == std::string::npos);

  const ProcessResult tensors = run_oq("info", {m.w4, "--tensors"});
  CHECK(tensors.code == 0);
  CHECK(tensors.out.find("blocks.2.down                w4 g32") != std::string::npos);
  CHECK(tensors.out.find("[96, 160]") != std::string::npos);

  const ProcessResult verify = run_oq("info", {m.w4, "--verify"});
  CHECK(verify.code == 0);
  CHECK(verify.err.find("every checksum is right") != std::string::npos);

  const auto json = oq_json("info", {m.w4});
  CHECK(json["bytes"] == std::filesystem::file_size(m.w4));
  CHECK(json["metadata"]["model.heads"] == 6);
  CHECK(json["metadata"]["model.tied_head"] == false);
  CHECK(json["metadata"]["tokenizer.patterns"].is_array());
  CHECK(json["tensors"].size() == 33);
  CHECK(std::any_of(json["tensors"].begin(), json["tensors"].end(), [](const auto& t) {
    return t["name"] == "blocks.2.down" && t["rows"] == 96 && t["cols"] == 160;
  }));
}

TEST_CASE("oq-info --set changes a value in place, or nothing") {
  const TempDir dir;
  const std::string path = dir / "model.oq";
  std::filesystem::copy(models().f16, path);
  const auto bytes = std::filesystem::file_size(path);
  const auto set = [&](const std::string& assignment) {
    return run_oq("info", {path, "--set", assignment});
  };
  CHECK(set("chat.template=llama2").code == 0);
  CHECK(set("model.norm_eps=0.001").code == 0);
  CHECK(set("tokenizer.stop_ids=2,7").code == 0);
  CHECK(std::filesystem::file_size(path) == bytes);
  const auto file = File::open(path);
  file->verify();
  CHECK(file->metadata().get<std::string>("chat.template") == "llama2");
  CHECK(file->metadata().get<double>("model.norm_eps") == 0.001);
  CHECK(file->metadata().get<std::vector<int64_t>>("tokenizer.stop_ids") ==
        std::vector<int64_t>{2, 7});

  const std::string before = read_file(path);
  check_fails("info", {path, "--set", "no.such=1"}, {"no.such", "lists the keys"});
  check_fails("info", {path, "--set", "model.heads=many"}, {"--set model.heads", "'many'"});
  check_fails("info", {path, "--set", "model.tied_head=1"}, {"--set model.tied_head", "true"});
  check_fails("info", {path, "--set", "model.heads=5"}, {"model.oq", "--set", "heads"});
  check_fails("info", {path, "--set", "model.hidden=64"}, {"model.oq", "'embedding'", "[300, 64]"});
  check_fails("info", {path, "--set", "scheme=w9"}, {"model.oq", "'w9'", "w4a16g128"});
  check_fails("info", {path, "--set", "tool.version=" + std::string(100'000, 'x')},
              {"model.oq", "metadata"});
  CHECK(set("model.heads").code == 2);
  CHECK(set("=5").code == 2);
  CHECK(read_file(path) == before);
}

TEST_CASE("oq-info --tokenize prints the tokenizer's ids") {
  const Models& m = models();
  const auto& tokens = tiny_vocabulary().tokens;
  const auto hello = std::find(tokens.begin(), tokens.end(), "hello") - tokens.begin();
  CHECK(run_oq("info", {m.f16, "--tokenize", "-"}, {.input = "hello"}).out ==
        std::to_string(hello) + "\n");
  std::string expected;
  for (int32_t id : Tokenizer::load(*File::open(m.f16))->encode(read_file(m.text), false)) {
    expected += (expected.empty() ? "" : " ") + std::to_string(id);
  }
  CHECK(run_oq("info", {m.f16, "--tokenize", m.text}).out == expected + "\n");
}

TEST_CASE("oq-run takes its prompt from the command line, a file or stdin") {
  const Models& m = models();
  const TempDir dir;
  write_file(dir / "prompt", "hello the world");
  for (const std::string& model : {m.f16, m.w4}) {
    const ProcessResult given = run_oq("run", {model, "-p", "hello the world", "-n", "12"});
    CHECK(given.code == 0);
    CHECK(given.out.size() > 1);
    CHECK(given.err.find("prompt 6 tokens") != std::string::npos);
    CHECK(given.err.find("decode 12 tokens") != std::string::npos);
    CHECK(given.err.find("logits ") != std::string::npos);
    const ProcessResult file = run_oq("run", {model, "-f", dir / "prompt", "-n", "12"});
    CHECK(file.out == given.out);
    const ProcessResult piped =
        run_oq("run", {model, "-f", "-", "-n", "12", "--quiet"}, {.input = "hello the world"});
    CHECK(piped.out == given.out);
    CHECK(piped.err.empty());
    const auto json = oq_json("run", {model, "-p", "hello the world", "-n", "12"});
    CHECK(json["tokens"].size() == 12);
    CHECK(json["prompt_tokens"] == 6);
    CHECK(json["ending"] == "length");
    CHECK(json["text"].get<std::string>() + "\n" == given.out);
  }
}

TEST_CASE("oq-run stops at a stop string, at the length, and at the end of the context") {
  const Models& m = models();
  const auto whole = oq_json("run", {m.endless, "-p", "hello", "-n", "40"});
  const std::string text = whole["text"];
  // A plain character from the middle, and so a whole one.
  const size_t at = text.find_first_of("abcdefghijklmnopqrstuvwxyz", text.size() / 2);
  REQUIRE(at != std::string::npos);
  const std::string stop(1, text[at]);
  const auto stopped = oq_json(
      "run", {m.endless, "-p", "hello", "-n", "40", "--stop", stop, "--stop", "is never written"});
  CHECK(stopped["ending"] == "stop string");
  CHECK(stopped["text"] == text.substr(0, text.find(stop)));

  CHECK(oq_json("run", {m.endless, "-p", "hello", "-n", "0"})["tokens"].empty());
  const auto full = oq_json("run", {m.endless, "-p", "hello", "-n", "-1", "--ctx", "32"});
  CHECK(full["ending"] == "context full");
  CHECK(full["tokens"].size() == 31);
  CHECK(full["tokens"][30] == whole["tokens"][30]);
  const ProcessResult told = run_oq("run", {m.endless, "-p", "hello", "--ctx", "32"});
  CHECK(told.code == 0);
  CHECK(told.err.find("--ctx makes it larger") != std::string::npos);
}

TEST_CASE("a model with more rows than its tokenizer has ids answers with ids only") {
  const TempDir dir;
  const std::string padded = dir / "padded.oq";
  const auto pad = [](TensorInfo& t, std::string& data) {
    if (t.name != "embedding" && t.name != "head") return true;
    data += data + data;  // every row of the model three times
    t.rows *= 3;
    return true;
  };
  copy_changed(
      models().f16, padded,
      {.metadata = [](Metadata& m) { m.set("model.vocab", int64_t(900)); }, .tensor = pad});
  const std::vector<std::string> rest = {"-p", "hello", "-n", "24", "--temperature", "2"};
  std::vector<std::string> own = {models().f16}, with_padding = {padded};
  own.insert(own.end(), rest.begin(), rest.end());
  with_padding.insert(with_padding.end(), rest.begin(), rest.end());
  CHECK(oq_json("run", with_padding)["tokens"] == oq_json("run", own)["tokens"]);
}

TEST_CASE("oq-eval prints a row for each model, or JSON") {
  const Models& m = models();
  const ProcessResult table =
      run_oq("eval", {m.f16, m.w4, "--perplexity", m.text, "--window", "64", "--max-windows", "3"});
  CHECK(table.code == 0);
  CHECK(table.out.find("| model | scheme | bits/weight | perplexity |") == 0);
  CHECK(std::count(table.out.begin(), table.out.end(), '\n') == 4);
  CHECK(table.out.find("| w4a16g32 | 4.645 | ") != std::string::npos);
  CHECK(table.out.find(" | 3 | 189 |\n") != std::string::npos);

  const auto json = oq_json("eval", {m.f16, "--perplexity", m.text, "--window", "64"});
  const auto& row = json["results"][0];
  CHECK(row["scheme"] == "w16a16");
  double sum = 0;
  for (double nll : row["window_nll"]) sum += nll;
  CHECK(row["perplexity"].get<double>() ==
        doctest::Approx(std::exp(sum / row["windows"].get<double>())));
  // Random weights know nothing of the text: worse than guessing among the 300 tokens.
  CHECK(row["perplexity"].get<double>() > 300);
  CHECK(row["standard_error"].get<double>() > 0);

  const auto piped = oq_json("eval", {m.f16, m.f16, "--perplexity", "-", "--window", "64"},
                             {.input = read_file(m.text)});
  CHECK(piped["results"][0]["perplexity"] == row["perplexity"]);
  CHECK(piped["results"][1]["perplexity"] == row["perplexity"]);
}

TEST_CASE("oq-eval --join hf puts two newlines between lines") {
  const Models& m = models();
  const TempDir dir;
  std::string lines, joined;
  for (int i = 0; i < 40; ++i) {
    lines += " the cat and the dog\n";
    joined += (i == 0 ? "" : "\n\n") + std::string(" the cat and the dog\n");
  }
  write_file(dir / "lines", lines);
  write_file(dir / "joined", joined);
  const auto perplexity = [&](const std::string& text, const std::vector<std::string>& more) {
    std::vector<std::string> args = {m.f16, "--perplexity", dir / text, "--window", "32"};
    args.insert(args.end(), more.begin(), more.end());
    return oq_json("eval", args)["results"][0];
  };
  const auto hf = perplexity("lines", {"--join", "hf"});
  CHECK(hf["perplexity"] == perplexity("joined", {})["perplexity"]);
  CHECK(hf["tokens"] != perplexity("lines", {})["tokens"]);
}

#if defined(OQ_HAVE_BENCH)
TEST_CASE("oq-bench measures prefill and decode") {
  const Models& m = models();
  const auto json = oq_json("bench", {m.w4, "-r", "1", "-p", "16", "-n", "8"});
  CHECK(json["scheme"] == "w4a16g32");
  CHECK(json["read_bandwidth"].get<double>() > 0);
  REQUIRE(json["results"].size() == 2);
  CHECK(json["results"][0]["test"] == "pp16");
  CHECK(json["results"][1]["test"] == "tg8");
  for (const auto& row : json["results"]) {
    CHECK(row["rates"].size() == 1);
    CHECK(row["tokens_per_second"].get<double>() > 0);
  }
  const ProcessResult table = run_oq("bench", {m.w4, "-r", "1", "-p", "0", "-n", "8"});
  CHECK(table.code == 0);
  CHECK(table.out.find("| tg8 |") != std::string::npos);
  CHECK(table.out.find("| pp") == std::string::npos);
  check_fails("bench", {m.w4, "-r", "1"}, {"w4.oq", "at most 256", "-p, -n and -d"});
  CHECK(run_oq("bench", {m.w4, "-p", "0", "-n", "0"}).code == 2);
}
#endif
