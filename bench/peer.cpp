#include "bench/peer.h"

#include <algorithm>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "bench/throughput.h"
#include "format/error.h"

namespace oq {
namespace {

using Json = nlohmann::json;

/// llama-bench: one object per test.
void read_llama_bench(const Json& list, std::map<std::string, double>& rates) {
  for (const Json& row : list) {
    const int64_t prompt = row.at("n_prompt"), decode = row.at("n_gen");
    if ((prompt > 0) == (decode > 0)) continue;  // pp+tg in one is no test of ours
    const ThroughputTest test{
        .decode = decode > 0, .tokens = prompt + decode, .depth = row.value("n_depth", int64_t(0))};
    rates[test.name()] = row.at("avg_ts");
  }
}

void read_oq_bench(const Json& object, std::map<std::string, double>& rates) {
  for (const Json& row : object.at("results")) rates[row.at("test")] = row.at("tokens_per_second");
}

}  // namespace

std::map<std::string, double> read_peer(const std::string& output) {
  std::map<std::string, double> rates;
  try {
    const Json json = Json::parse(output);
    json.is_array() ? read_llama_bench(json, rates) : read_oq_bench(json, rates);
  } catch (const Json::exception& e) {
    throw Error({.what = "the peer's output is not understood",
                 .where = "--peer",
                 .expected = "the JSON of llama-bench -o json or of oq-bench --json on stdout",
                 .found = e.what()});
  }
  if (rates.empty()) throw Error({.what = "the peer ran no test", .where = "--peer"});
  return rates;
}

void Peer::run() {
  FILE* pipe = popen(command_.c_str(), "r");
  if (pipe == nullptr) throw Error({.what = "cannot be started", .where = "--peer"});
  std::string output;
  char buffer[4096];
  while (const size_t n = fread(buffer, 1, sizeof buffer, pipe)) output.append(buffer, n);
  if (const int status = pclose(pipe); status != 0) {
    throw Error({.what = "the peer failed",
                 .where = "--peer " + command_,
                 .expected = "exit status 0",
                 .found = "wait status " + std::to_string(status)});
  }
  for (const auto& [test, rate] : read_peer(output)) rates_[test].push_back(rate);
}

std::vector<double> Peer::rates(const std::string& test) const {
  const auto found = rates_.find(test);
  if (found == rates_.end()) return {};
  std::vector<double> sorted = found->second;
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

}  // namespace oq
