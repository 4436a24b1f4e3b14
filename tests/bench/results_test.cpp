#include "bench/gpu/results.h"

#include <doctest/doctest.h>

#include "bench/gpu/whole_model.h"
#include "format/error.h"
#include "tests/support.h"

using namespace oq;
using namespace oq::test;

TEST_CASE("a table of results is whole after every row, and goes on where it stopped") {
  const TempDir dir;
  const auto path = dir / "new/gpu";
  const std::string head =
      "# A GPU\n\nBy `bench/gpu.sh`; docs/cuda.md says what each part measures. Times are "
      "medians.\n";
  {
    Results results(path, "A GPU");
    CHECK(!results.has("Linears", "w4"));
    results.put("Linears", "w4", {{"us", 12.345678}});
    results.put("Limits", "read", {{"GB/s", 3000.0}});
    results.put_failure("Linears", "w3", "it | broke\ntwice");
    CHECK(results.failed("Linears", "w3"));
  }
  Results results(path, "A GPU");
  CHECK(results.has("Linears", "w4"));
  CHECK(!results.has("Limits", "w4"));
  CHECK(!results.has("Linears", "w3"));
  CHECK(results.failed("Linears", "w3"));
  results.put("Linears", "w2", {{"us", 7.5}, {"weak", 4}});
  results.put("Linears", "w4", {{"us", 11.0}});
  CHECK(read_file(dir / "new/gpu.md") ==
        head +
            "\n## Linears\n\n| | us | weak | failed |\n|---|---|---|---|\n| w4 | 11 |  |  |\n"
            "| w3 |  |  | it / broke twice |\n| w2 | 7.5 | 4 |  |\n"
            "\n## Limits\n\n| | GB/s |\n|---|---|\n| read | 3000 |\n");
  const auto json = nlohmann::json::parse(read_file(dir / "new/gpu.json"));
  CHECK(json["device"] == "A GPU");
  CHECK(json["rows"].size() == 4);
}

TEST_CASE("a damaged table is refused") {
  const TempDir dir;
  for (const char* text : {"", "{", "[]", R"({"rows": 1})", R"({"rows": [1]})",
                           R"({"rows": [{"table": "a", "key": 1, "columns": {}}]})",
                           R"({"rows": [{"table": "a", "key": "b", "columns": []}]})"}) {
    write_file(dir / "gpu.json", text);
    CHECK_THROWS_WITH_AS(Results(dir / "gpu", "A GPU"), doctest::Contains("gpu.json"), Error);
  }
}

TEST_CASE("a summary names what failed and what missed") {
  const TempDir dir;
  Results results(dir / "gpu", "A GPU");
  Results::Json good = {{"us", 1}}, bad = {{"us", 3}};
  hold_to(good, "at most 2 us", true);
  hold_to(bad, "at most 2 us", false);
  hold_to(bad, "3 x cuBLAS", true);
  results.put("Linears", "w4", good);
  results.put("Linears", "w2", bad);
  CHECK(!results.any_failed());
  CHECK(results.summary() ==
        "2 rows, 0 failed, 1 missed what they are held to\n"
        "Linears: w2: missed: at most 2 us; 3 x cuBLAS\n");
  results.put_failure("Linears", "w2", "no memory");
  CHECK(results.any_failed());
  CHECK(results.summary() ==
        "2 rows, 1 failed, 0 missed what they are held to\nLinears: w2: failed: no memory\n");
}

TEST_CASE("a whole model's row says what oq-bench found, and what it is held to") {
  const std::string report = R"({"bits_per_weight": 4.2, "device_memory": 4e9,
    "read_bandwidth": 3e12, "backend": "cuda", "results": [
      {"test": "pp512", "tokens_per_second": 9000, "rates": [9000], "bytes_per_token": 0},
      {"test": "tg64", "tokens_per_second": 500, "bytes_per_token": 1,
       "shares_of_read_bandwidth": [0.6, 0.7, 0.8], "peer_rates": [40, 50, 60]}]})";
  const auto row = model_columns(report, {.share = 0.65, .gigabytes = 3});
  CHECK(row["tg64, tokens/s"] == 500);
  CHECK(row["tg64, ratio"] == 10);
  CHECK(row["share of read bandwidth"] == 0.7);
  CHECK(row["device memory GB"] == 4);
  CHECK(row["held to"] == "share 0.65; 3 GB");
  CHECK(row["met"] == false);
  CHECK(model_columns(report, {.share = 0.65, .gigabytes = 0})["met"] == true);
  CHECK(!model_columns(report, {}).contains("met"));
  for (const char* text : {"", "{}", "[]", R"({"bits_per_weight": 4, "results": [1]})"}) {
    CHECK_THROWS_WITH_AS(model_columns(text, {}), doctest::Contains("oq-bench --json"), Error);
  }
}
