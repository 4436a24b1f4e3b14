// oq-bench on random weights.

#include <algorithm>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>
#include <sys/resource.h>

#include "tests/process.h"

using namespace oq::test;

namespace {

ProcessResult run_bench(std::vector<std::string> args, const std::function<void()>& before = {}) {
  args.insert(args.begin(), tool("oq-bench"));
  args.insert(args.end(), {"--threads", "1"});
  return run(args, before);
}

nlohmann::json bench_json(std::vector<std::string> args) {
  args.emplace_back("--json");
  const ProcessResult r = run_bench(std::move(args));
  REQUIRE_MESSAGE(r.code == 0, r.err);
  REQUIRE(nlohmann::json::accept(r.out));
  return nlohmann::json::parse(r.out);
}

void check_misused(std::vector<std::string> args, const std::string& says) {
  const ProcessResult r = run_bench(std::move(args));
  CAPTURE(r.err);
  CHECK(r.code == 2);
  CHECK(r.out.empty());
  CHECK(r.err.find(says) != std::string::npos);
}

}  // namespace

TEST_CASE("oq-bench measures a synthetic model under its name") {
  const auto json = bench_json(
      {"--synthetic", "smollm2-135m", "--scheme", "w2*a16", "-p", "4", "-n", "2", "-r", "1"});
  CHECK(json["model"] == "smollm2-135m");
  CHECK(json["synthetic"] == true);
  CHECK(json["scheme"] == "w2*a16");
  CHECK(json["bits_per_weight"].get<double>() > 2.33);
  CHECK(json["bits_per_weight"].get<double>() < 2.6);
  CHECK(json["weights_on_huge_pages"].get<double>() <= 1);
  // 106.2 M weights in the blocks, and the head of 28.3 M, at 8 bits unless said otherwise.
  const double bytes = json["weight_bytes_per_token"].get<double>();
  CHECK(bytes > 106.2e6 * 2.33 / 8 + 28.3e6);
  CHECK(bytes < 106.2e6 * 2.60 / 8 + 28.3e6 * 1.06);
}

TEST_CASE("oq-bench prints a synthetic model's table, with the head at --head-bits") {
  const ProcessResult r = run_bench({"--synthetic", "opt-125m", "--scheme", "w4a16g128",
                                     "--head-bits", "4", "-p", "0", "-n", "2", "-r", "1"});
  CHECK(r.code == 0);
  CHECK(r.out.find("| opt-125m | w4a16g128 | 4.16 |") != std::string::npos);
  // 84.9 M weights in the blocks and 38.6 M in the head at 4.16 and 4.31 bits are 65 MB, and
  // biases, norms and one row of two tables 0.5 MB; at 8 bits it would be 85.
  CHECK(r.out.find("; 65.") != std::string::npos);
  CHECK(r.out.find(", made in") != std::string::npos);
}

TEST_CASE("oq-bench wants one model, and says which shapes there are") {
  check_misused({}, "--synthetic NAME");
  check_misused({"m.oq", "--synthetic", "opt-125m", "--scheme", "w4a16"}, "--synthetic NAME");
  check_misused({"m.oq", "--scheme", "w4a16"}, "a file has its own");
  check_misused({"m.oq", "--head-bits", "8"}, "a file has its own");
  check_misused({"--synthetic", "opt-125m"}, "--scheme");
  check_misused({"--synthetic", "opt-125m", "--scheme", "w9a16"}, "not a scheme");
  check_misused({"--synthetic", "opt-125m", "--scheme", "w4a16", "--head-bits", "5"},
                "--head-bits");
  check_misused({"--synthetic", "opt-125m", "--scheme", "w16a16", "--head-bits", "8"}, "quantizes");
  check_misused({"--synthetic", "gpt-5", "--scheme", "w4a16"}, "mixtral-mini");
}

TEST_CASE("a synthetic model that does not fit is refused before memory is taken") {
  // Where the machine itself could hold it, the process may not.
  const auto limit = [] {
    const rlimit most{.rlim_cur = rlim_t(4) << 30, .rlim_max = rlim_t(4) << 30};
    setrlimit(RLIMIT_AS, &most);
  };
  const ProcessResult r = run_bench({"--synthetic", "falcon-180b", "--scheme", "w16a16"}, limit);
  CAPTURE(r.err);
  CHECK(r.code == 1);
  CHECK(r.out.empty());
  for (const char* says :
       {"oq-bench: synthetic falcon-180b: ", "memory", " 357.1 GB", "fewer bits"}) {
    CAPTURE(says);
    CHECK(r.err.find(says) != std::string::npos);
  }
}

TEST_CASE("oq-bench tests every depth and batch, in each of its formats") {
  const std::vector<std::string> args = {"--synthetic", "smollm2-135m", "--scheme", "w4a16", "-p",
                                         "3",           "-n",           "2",        "-r",    "1",
                                         "-d",          "0,5",          "-b",       "1,3"};
  const auto json = bench_json(args);
  std::vector<std::string> tests;
  for (const auto& row : json["results"]) tests.push_back(row["test"]);
  CHECK(tests ==
        std::vector<std::string>{"pp3", "tg2", "tg2 x 3", "pp3 @ d5", "tg2 @ d5", "tg2 @ d5 x 3"});
  const auto bytes = [&](int i) { return json["results"][i]["bytes_per_token"].get<double>(); };
  // 30 blocks, 3 KV heads of 64, K and V in f16; a batch of 3 shares the weights.
  CHECK(bytes(4) - bytes(1) == 5 * 30 * 2 * 3 * 64 * 2);
  CHECK((bytes(1) - bytes(2)) * 3 ==
        doctest::Approx(2 * json["weight_bytes_per_token"].get<double>()));

  auto csv = args;
  csv.emplace_back("--csv");
  const ProcessResult r = run_bench(csv);
  CHECK(r.code == 0);
  CHECK(std::count(r.out.begin(), r.out.end(), '\n') == 7);
  CHECK(r.out.find("smollm2-135m,w4a16,4.") != std::string::npos);
  CHECK(r.out.find(",tg2 @ d5 x 3,") != std::string::npos);
}

TEST_CASE("a peer's throughput stands beside ours") {
  const TempDir dir;
  write_file(dir / "peer.json",
             R"([{"n_prompt": 3, "n_gen": 0, "n_depth": 0, "avg_ts": 50.0},
                 {"n_prompt": 0, "n_gen": 2, "avg_ts": 20.0},
                 {"n_prompt": 3, "n_gen": 2, "avg_ts": 1.0}])");
  const std::string command =
      "cat '" + (dir / "peer.json").string() + "'; echo run >> '" + (dir / "runs").string() + "'";
  const std::vector<std::string> args = {"--synthetic", "smollm2-135m", "--scheme", "w4a16", "-p",
                                         "3",           "-n",           "2",        "-r",    "2",
                                         "--peer",      command};
  const auto json = bench_json(args);
  CHECK(json["results"][0]["peer_rates"] == std::vector<double>{50, 50});
  CHECK(json["results"][1]["peer_rates"] == std::vector<double>{20, 20});
  CHECK(read_file(dir / "runs") == "run\nrun\n");
  const ProcessResult table = run_bench(args);
  CHECK(table.out.find("| peer | ratio |") != std::string::npos);
  CHECK(table.out.find("| 20.0 |") != std::string::npos);

  for (const auto& [bad, says] :
       {std::pair("exit 3", "the peer failed"), std::pair("echo nonsense", "not understood"),
        std::pair("echo '[]'", "no test"), std::pair("echo '{\"results\": 1}'", "")}) {
    auto wrong = args;
    wrong.back() = bad;
    const ProcessResult r = run_bench(wrong);
    CAPTURE(wrong.back());
    CAPTURE(r.err);
    CHECK(r.code == 1);
    CHECK(r.err.find(says) != std::string::npos);
  }
}
