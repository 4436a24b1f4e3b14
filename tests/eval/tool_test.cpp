/// The program: several models, texts and tasks in one go, and what it refuses.

#include <cmath>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "format/file.h"
#include "tests/eval/models.h"

using namespace oq;
using namespace oq::test;
using doctest::Approx;

namespace {

nlohmann::json json_of(std::vector<std::string> args) {
  args.emplace_back("--json");
  const ProcessResult r = oq_eval(args);
  REQUIRE_MESSAGE(r.code == 0, r.err);
  return nlohmann::json::parse(r.out);
}

void check_ends(const std::vector<std::string>& args, int code,
                const std::vector<std::string>& says) {
  const ProcessResult r = oq_eval(args);
  CAPTURE(r.err);
  CHECK(r.code == code);
  CHECK(r.out.empty());
  for (const std::string& part : says) {
    CAPTURE(part);
    CHECK(r.err.find(part) != std::string::npos);
  }
}

struct Questions {
  Questions() {
    write_file(copa,
               R"({"premise": "The cat sat.", "choice1": "It was old.", "choice2": "He ran.", )"
               R"("question": "cause", "label": 0})"
               "\n"
               R"({"premise": "The dog ran.", "choice1": "It fell.", "choice2": "We won.", )"
               R"("question": "effect", "label": 1})"
               "\n");
    write_file(lambada, "the cat and the dog\nthe dog and the cat\nthe cat of the house\n");
  }
  TempDir dir;
  std::string copa = dir / "copa.jsonl", lambada = dir / "lambada.txt";
};

}  // namespace

TEST_CASE("several texts and models stand in one table, with paired differences") {
  const Models& m = models();
  const TempDir dir;
  write_file(dir / "more.txt", read_file(m.text).substr(200));
  const auto json = json_of({m.f16, m.w3, "--perplexity", m.text, dir / "more.txt", "--window",
                             "32", "--max-windows", "4"});
  CHECK(json["window"] == 32);
  const auto& rows = json["results"];
  REQUIRE(rows.size() == 4);
  CHECK(rows[0]["model"] == m.f16);
  CHECK(rows[1]["text"] == (dir / "more.txt").string());
  CHECK(rows[3]["model"] == m.w3);
  CHECK_FALSE(rows[0].contains("difference"));
  for (int t = 0; t < 2; ++t) {
    const auto a = rows[size_t(t)]["window_nll"].get<std::vector<double>>();
    const auto b = rows[size_t(t + 2)]["window_nll"].get<std::vector<double>>();
    REQUIRE(a.size() == 4);
    double mean = 0, squares = 0;
    for (size_t i = 0; i < 4; ++i) mean += (b[i] - a[i]) / 4;
    for (size_t i = 0; i < 4; ++i) squares += std::pow(b[i] - a[i] - mean, 2);
    const auto& d = rows[size_t(t + 2)]["difference"];
    CHECK(d["nll"].get<double>() == Approx(mean));
    CHECK(d["nll_standard_error"].get<double>() == Approx(std::sqrt(squares / 3 / 4)));
    CHECK(d["perplexity"].get<double>() == Approx(rows[size_t(t + 2)]["perplexity"].get<double>() -
                                                  rows[size_t(t)]["perplexity"].get<double>()));
  }
  const ProcessResult table =
      oq_eval({m.f16, m.w3, "--perplexity", m.text, dir / "more.txt", "--window", "32"});
  CHECK(table.out.find("| model | scheme | bits/weight | text | perplexity | +- | difference | +- |"
                       " windows | tokens |\n") == 0);
  CHECK(std::count(table.out.begin(), table.out.end(), '\n') == 6);
}

TEST_CASE("the only model may come last") {
  const Models& m = models();
  const ProcessResult r =
      run({tool("oq-eval"), "--quiet", "--window", "32", "--perplexity", m.text, m.f16});
  CHECK_MESSAGE(r.code == 0, r.err);
  CHECK(r.out.find("difference") == std::string::npos);
}

TEST_CASE("one window has no standard error, and a table none that is no number") {
  const Models& m = models();
  const auto ends = [&](const std::vector<std::string>& what) {
    std::vector<std::string> args = {m.f16, m.w3, "--window", "32", "--max-windows", "1"};
    args.insert(args.end(), what.begin(), what.end());
    const ProcessResult r = oq_eval(args);
    CHECK_MESSAGE(r.code == 0, r.err);
    CHECK(r.out.find("nan") == std::string::npos);
    return r.out;
  };
  CHECK(ends({"--perplexity", m.text}).find(" |  | 1 | 31 |") != std::string::npos);
  CHECK(ends({"--divergence", m.f16, m.text}).find("| KL mean |") != std::string::npos);
}

TEST_CASE("divergence from a reference") {
  const Models& m = models();
  const std::vector<std::string> args = {m.f16,      m.w3, "--divergence",  m.f16, m.text,
                                         "--window", "32", "--max-windows", "3"};
  const auto rows = json_of(args)["divergence"];
  REQUIRE(rows.size() == 2);
  CHECK(rows[0]["kl_mean"] == 0);
  CHECK(rows[0]["agreement"] == 1);
  CHECK(rows[1]["kl_mean"].get<double>() > 0);
  CHECK(rows[1]["kl_percentile_99"].get<double>() > rows[1]["kl_mean"].get<double>());
  CHECK(rows[1]["agreement"].get<double>() < 1);
  CHECK(rows[1]["tokens"] == 3 * 31);
  const ProcessResult table = oq_eval(args);
  CHECK(table.out.find("| model | scheme | bits/weight | KL mean | +- | KL 99 % | same top-1, %") ==
        0);
  check_ends({m.w3, "--divergence", m.other, m.text, "--window", "32"}, 1,
             {"w3.oq", "different vocabularies", "<|im_over|>"});
  check_ends({m.w3, "--divergence", m.f16}, 2, {"--divergence"});
}

TEST_CASE("tasks, several at a time") {
  const Models& m = models();
  const Questions q;
  const std::vector<std::string> args = {m.f16, m.w3, "--task", "copa=" + q.copa,
                                         "lambada=" + q.lambada};
  const auto rows = json_of(args)["tasks"];
  REQUIRE(rows.size() == 4);
  CHECK(rows[0]["task"] == "copa");
  CHECK(rows[0]["questions"] == 2);
  CHECK(rows[0]["log_likelihoods"][1].size() == 2);
  CHECK_FALSE(rows[0].contains("acc_norm"));
  CHECK(rows[1]["task"] == "lambada");
  CHECK(rows[1]["perplexity"]["value"].get<double>() > 1);
  CHECK(rows[2]["model"] == m.w3);
  CHECK(rows[2]["log_likelihoods"] != rows[0]["log_likelihoods"]);

  auto few = args;
  few.insert(few.end(), {"--max-questions", "1"});
  const auto first = json_of(few)["tasks"];
  CHECK(first[0]["questions"] == 1);
  CHECK(first[0]["log_likelihoods"][0] == rows[0]["log_likelihoods"][0]);

  auto again = args;
  again.insert(again.end(), {"--harness", "joint"});
  CHECK(json_of(again)["tasks"] == rows);
  again.back() = "separate";
  CHECK(json_of(again)["tasks"].size() == 4);
  again.emplace_back("--bos");
  CHECK(json_of(again)["tasks"][0]["log_likelihoods"] != rows[0]["log_likelihoods"]);
}

TEST_CASE("everything in one go") {
  const Models& m = models();
  const Questions q;
  const std::vector<std::string> args = {
      m.w3,   "--perplexity", m.text,           "--divergence", m.f16,
      m.text, "--task",       "copa=" + q.copa, "--window",     "32"};
  const auto json = json_of(args);
  CHECK(json["results"].size() == 1);
  CHECK(json["divergence"].size() == 1);
  CHECK(json["tasks"].size() == 1);
  const ProcessResult tables = oq_eval(args);
  CHECK(tables.code == 0);
  CHECK(std::count(tables.out.begin(), tables.out.end(), '\n') == 3 * 3 + 2);
}

TEST_CASE("wrong usage is 2, a wrong file is 1") {
  const Models& m = models();
  const Questions q;
  const TempDir dir;
  write_file(dir / "bad.jsonl", read_file(q.copa) + "{\"premise\": \"x\"}\n");
  check_ends({m.f16}, 2, {"--perplexity, --divergence or --task"});
  check_ends({m.f16, "--task", "arc=" + q.copa}, 2, {"'arc=", "arc_easy", "lambada"});
  check_ends({m.f16, "--task", "copa"}, 2, {"NAME=FILE"});
  check_ends({m.f16, "--task", "copa="}, 2, {"NAME=FILE"});
  check_ends({"--task", "copa=" + q.copa, m.f16, m.w3}, 2, {"NAME=FILE"});
  check_ends({m.f16, "--task", "copa=" + q.copa, "--harness", "none"}, 2, {"--harness"});
  check_ends({m.f16, "--task", "copa=" + q.copa, "--max-questions", "-1"}, 2, {"--max-questions"});
  check_ends({m.f16, "--task", "copa=" + (dir / "absent").string()}, 1,
             {"oq-eval: ", "absent", "check the path"});
  check_ends({m.f16, "--task", "copa=" + (dir / "bad.jsonl").string()}, 1,
             {"oq-eval: ", "bad.jsonl, line 3", "'question'"});
  check_ends({m.f16, "--task", "hellaswag=" + q.copa}, 1, {"copa.jsonl, line 1", "'endings'"});
}

TEST_CASE("oq-calibrate --perplexity says what oq-eval says") {
  const Models& m = models();
  const TempDir dir;
  const std::string made = dir / "made.oq";
  const ProcessResult r = run({tool("oq-calibrate"),
                               m.f16,
                               "-o",
                               made,
                               "--method",
                               "gptq",
                               "--scheme",
                               "w3a16g32",
                               "--text",
                               m.text,
                               "--windows",
                               "4",
                               "--window",
                               "32",
                               "--perplexity",
                               m.text,
                               "--max-windows",
                               "3",
                               "--threads",
                               "1",
                               "--quiet",
                               "--json",
                               "--report",
                               dir / "report.html"});
  REQUIRE_MESSAGE(r.code == 0, r.err);
  const auto said = nlohmann::json::parse(r.out)["perplexity"];
  const auto rows = json_of(
      {m.f16, made, "--perplexity", m.text, "--window", "32", "--max-windows", "3"})["results"];
  CHECK(said["windows"] == 3);
  CHECK(said["full_precision"].get<double>() == Approx(rows[0]["perplexity"].get<double>()));
  CHECK(said["quantized"].get<double>() == Approx(rows[1]["perplexity"].get<double>()));
  CHECK(said["quantized"].get<double>() != said["full_precision"].get<double>());
  CHECK(read_file(dir / "report.html").find("full precision") != std::string::npos);
}

TEST_CASE("oq-calibrate --json has every block's loss by epoch, and its errors") {
  const Models& m = models();
  const TempDir dir;
  const auto made = [&](std::vector<std::string> flags) {
    std::vector<std::string> args = {
        tool("oq-calibrate"), m.f16, "-o",    dir / "made.oq", "--text", m.text, "--windows", "2",
        "--window",           "32",  "--json"};
    args.insert(args.end(), flags.begin(), flags.end());
    const ProcessResult r = run(args);
    REQUIRE_MESSAGE(r.code == 0, r.err);
    return nlohmann::json::parse(r.out);
  };
  const auto learned = made({"--method", "omniquant", "--scheme", "w3a16", "--epochs", "3"});
  REQUIRE(learned["losses"].size() > 0);
  for (const auto& block : learned["losses"]) CHECK(block.size() == 3);
  const auto chosen = made({"--method", "auto", "--scheme", "w3a16", "--epochs", "1"});
  REQUIRE(chosen["output_errors"].size() == learned["losses"].size());
  for (const auto& error : chosen["output_errors"]) CHECK(error.get<double>() > 0);
}

TEST_CASE(
    "oq-calibrate learns towards a second target at 2 bits of weights alone, from first tokens "
    "where activations are quantized, or when asked") {
  const Models& m = models();
  const TempDir dir;
  const std::string made = dir / "made.oq";
  struct Case {
    std::string scheme, flag;
    bool second, first_tokens = false;
  };
  for (const Case& c :
       {Case{"w2a16", "--let", true}, Case{"w2*a16", "--let", true},
        Case{"w2a16", "--no-aug-loss", false}, Case{"w2a16", "--faithful", false},
        Case{"w3a16", "--let", false}, Case{"w3a16", "--aug-loss", true},
        Case{"w2a8", "--let", false, true}, Case{"w4a4", "--faithful", false},
        Case{"w4a4", "--no-first-tokens", false}, Case{"w3a16", "--first-tokens", false, true}}) {
    CAPTURE(c.scheme);
    CAPTURE(c.flag);
    const ProcessResult r =
        run({tool("oq-calibrate"), m.f16, "-o", made, "--method", "omniquant", "--scheme", c.scheme,
             "--text", m.text, "--windows", "2", "--window", "32", "--epochs", "1", c.flag});
    REQUIRE_MESSAGE(r.code == 0, r.err);
    const auto how = File::open(made)->metadata().get<std::string>("calibration.options");
    CHECK((how.find(" --aug-loss") != std::string::npos) == c.second);
    CHECK((how.find(" --first-tokens") != std::string::npos) == c.first_tokens);
  }
}

TEST_CASE("oq-calibrate refuses what it could not measure or report before it calibrates") {
  const Models& m = models();
  const TempDir dir;
  const std::string made = dir / "made.oq", brief = dir / "brief.txt";
  write_file(brief, "the cat");
  for (const auto& [flag, value, says] :
       {std::tuple("--perplexity", brief, "shorter than one window"),
        std::tuple("--report", std::string(dir / "no/report.html"), "cannot be written")}) {
    const ProcessResult r = run({tool("oq-calibrate"), m.f16, "-o", made, "--method", "rtn",
                                 "--scheme", "w3a16", "--window", "32", flag, value});
    CHECK(r.code == 1);
    CHECK_MESSAGE(r.err.find(says) != std::string::npos, r.err);
    CHECK_FALSE(std::filesystem::exists(made));
  }
}

TEST_CASE("oq-calibrate refuses, by name, the flags that a method does not read") {
  const Models& m = models();
  const TempDir dir;
  const std::string made = dir / "made.oq";
  for (const auto& [method, flag, says] :
       {std::tuple("auto", "--true-sequential", "--true-sequential is for"),
        std::tuple("auto", "--layers=q,down", "--layers is for"),
        std::tuple("auto", "--paper-counts", "--paper-counts is for"),
        std::tuple("rtn", "--true-sequential", "gptq, owq, awrq, not for rtn"),
        std::tuple("rtn", "--layers=q", "owq, not for rtn"),
        std::tuple("rtn", "--damp=0.1", "not for rtn"),
        std::tuple("rtn", "--alpha=0.3", "--alpha is read"),
        std::tuple("gptq", "--target-bits=3.1", "owq, auto, not for gptq"),
        std::tuple("gptq", "--no-let", "--let is for"),
        std::tuple("omniquant", "--no-act-order", "--act-order is for"),
        std::tuple("gptq", "--aug-loss", "omniquant, abq, auto, not for gptq"),
        std::tuple("awrq", "--first-tokens", "omniquant, abq, auto, not for awrq"),
        std::tuple("omniquant", "--attention-loss=1", "abq, not for omniquant"),
        std::tuple("omniquant", "--min-scale=0.1", "--min-scale is read with --smooth only"),
        std::tuple("omniquant", "--alpha=0.3", "--alpha is read"),
        std::tuple("owq", "--weak-type=bf16", "--weak-type is read"),
        std::tuple("auto", "--weak-type=bf16", "--weak-type is read"),
        std::tuple("act-only", "--tuning=mse", "not for act-only"),
        std::tuple("gptq", "--epochs=3", "not for gptq"),
        std::tuple("gptq", "--faithful", "not for gptq"),
        std::tuple("auto", "--save-params=p.safetensors", "not for auto"),
        std::tuple("rtn", "--max-windows=3", "--perplexity"),
        std::tuple("rtn", "--tune-lr=0.1", "--tune-weak")}) {
    const std::string given = flag;
    CAPTURE(given);
    const ProcessResult r = run({tool("oq-calibrate"), m.f16, "-o", made, "--method", method,
                                 "--scheme", "w3a16", "--text", m.text, "--window", "32", flag});
    CHECK(r.code == 2);
    CHECK_MESSAGE(r.err.find(says) != std::string::npos, r.err);
    CHECK_FALSE(std::filesystem::exists(made));
  }
}

TEST_CASE("oq-calibrate refuses flags of learning that have nothing to do beside others") {
  const Models& m = models();
  const TempDir dir;
  const std::string made = dir / "made.oq", file = dir / "x.pt";
  write_file(file, "never read");
  const auto refused = [&](std::vector<std::string> flags, const char* says) {
    flags.insert(flags.begin(), {tool("oq-calibrate"), m.f16, "-o", made, "--method", "omniquant",
                                 "--scheme", "w3a16"});
    const ProcessResult r = run(flags);
    CAPTURE(says);
    CHECK(r.code == 2);
    CHECK_MESSAGE(r.err.find(says) != std::string::npos, r.err);
    CHECK_FALSE(std::filesystem::exists(made));
  };
  refused({"--text", m.text, "--act-scales", file}, "--act-scales is read where");
  refused({"--text", m.text, "--act-scales", file, "--faithful", "--no-let"},
          "--act-scales is read where");
  refused({"--params", file, "--act-scales", file, "--faithful"}, "--act-scales is read where");
  refused({"--params", file, "--epochs", "3"}, "--epochs is read without --params only");
  refused({"--params", file, "--first-tokens"}, "--first-tokens is read without --params only");
  refused({"--params", file, "--tuning", "mse"}, "--tuning is read without --params only");
  refused({"--params", file, "--lwc-lr", "0.1"}, "--lwc-lr is read");
  refused({"--text", m.text, "--no-lwc", "--lwc-lr", "0.1"}, "--lwc-lr is read");
  refused({"--text", m.text, "--no-let", "--let-lr", "0.1"}, "--let-lr is read");
}

TEST_CASE("tuned weak columns are run in place of the model's own") {
  const Models& m = models();
  const TempDir dir;
  const std::string owq = dir / "owq.oq", weak = dir / "weak.oq";
  const auto made =
      run({tool("oq-calibrate"), m.f16, "-o", owq, "--method", "owq", "--scheme", "w2a16",
           "--weak-columns", "4", "--text", m.text, "--windows", "2", "--window", "32", "--quiet"});
  REQUIRE_MESSAGE(made.code == 0, made.err);
  const auto tuned = run({tool("oq-calibrate"), owq, "-o", weak, "--tune-weak", "40", "--tune-lr",
                          "0.005", "--text", m.text, "--windows", "4", "--window", "32", "--json"});
  REQUIRE_MESSAGE(tuned.code == 0, tuned.err);
  const auto loss = nlohmann::json::parse(tuned.out);
  CHECK(loss["loss"].get<double>() < loss["loss_before"].get<double>());
  const auto perplexity = [&](std::vector<std::string> args) {
    args.insert(args.end(), {"--perplexity", m.text, "--window", "32"});
    return json_of(args)["results"][0]["perplexity"].get<double>();
  };
  CHECK(perplexity({owq, "--weak", weak}) < 0.95 * perplexity({owq}));
  check_ends({m.w3, "--weak", weak, "--perplexity", m.text}, 1, {"weak.oq", "another file's"});
  check_ends({owq, m.w3, "--weak", weak, "--perplexity", m.text}, 2, {"single MODEL"});
  const auto said = [&](std::vector<std::string> args) {
    args.insert(args.begin(), {tool("oq-run"), owq, "-p", "the cat", "-n", "2", "--json"});
    const ProcessResult r = run(args);
    REQUIRE_MESSAGE(r.code == 0, r.err);
    return nlohmann::json::parse(r.out)["logits_hash"].get<std::string>();
  };
  CHECK(said({}) != said({"--weak", weak}));
  CHECK(said({"--weak", weak, "--huge-pages"}) == said({"--weak", weak}));
  for (const std::string flag :
       {"--method=owq", "--scheme=w2a16", "--head-bits=8", "--resume", "--report=x.html",
        "--perplexity=x.txt", "--target-bits=3", "--weak-type=bf16", "--smooth", "--epochs=3",
        "--no-let", "--save-params=x.safetensors"}) {
    const ProcessResult r =
        run({tool("oq-calibrate"), owq, "-o", weak, "--tune-weak", "4", "--text", m.text, flag});
    CHECK(r.code == 2);
    CHECK_MESSAGE(r.err.find("is not for --tune-weak") != std::string::npos, r.err);
  }
  CHECK(run({tool("oq-calibrate"), owq, "-o", weak}).code == 2);
}
