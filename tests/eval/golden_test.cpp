/// Log-likelihoods of SmolLM2-135M against HF transformers (golden/make_tasks.py). Needs the model:
/// the environment variable OQ_SMOLLM2_GGUF names it.

#include <cmath>
#include <cstdlib>
#include <fstream>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "tests/process.h"
#include "tools/eval/model_scorer.h"

using namespace oq;
using test::TempDir;

TEST_SUITE("data") {
  TEST_CASE("log-likelihoods of three tasks equal HF transformers'") {
    const char* gguf = std::getenv("OQ_SMOLLM2_GGUF");
    if (gguf == nullptr || !std::filesystem::exists(gguf)) {
      std::fprintf(stderr,
                   "SKIPPED: needs OQ_SMOLLM2_GGUF, the model that scripts/demo.sh fetches\n");
      return;
    }
    const std::pair<const char*, const char*> files[] = {
        {"arc_easy", "tasks/arc_easy.test.jsonl"},
        {"piqa", "tasks/piqa.valid.jsonl"},
        {"hellaswag", "tasks/hellaswag.valid.jsonl"}};
    const auto golden = nlohmann::json::parse(std::ifstream(test::golden("smollm2_tasks.json")));
    const TempDir dir;
    const std::string path = dir / "model.oq";
    REQUIRE(test::run({test::tool("oq-convert"), gguf, "-o", path, "--quiet"}).code == 0);
    const Model model(path, {.backend = {"cpu"}, .exact = true});
    for (const auto& [task, file] : files) {
      const std::string name = task;  // clang 14 captures no structured binding
      const auto data = test::data(file);
      if (!data) continue;
      CAPTURE(name);
      const auto all = find_task(name)->read(*data);
      for (const Harness harness : {Harness::joint, Harness::separate}) {
        const auto& truth = golden[name][harness == Harness::joint ? "joint" : "separate"];
        std::vector<Request> requests;
        std::vector<double> expected;
        for (size_t q = 0; q < truth.size(); ++q) {
          const auto& asked = all[golden[name]["questions"][q].get<size_t>()].requests;
          REQUIRE(truth[q].size() == asked.size());
          requests.insert(requests.end(), asked.begin(), asked.end());
          for (const double score : truth[q]) expected.push_back(score);
        }
        const auto scores = ModelScorer(model, harness, false).score(requests, [](int64_t) {});
        for (size_t i = 0; i < scores.size(); ++i) {
          CHECK(std::fabs(scores[i].log_likelihood - expected[i]) <= 5e-4);
        }
      }
    }
  }
}
