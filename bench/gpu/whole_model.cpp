#include "bench/gpu/whole_model.h"

#include <vector>

#include <fmt/format.h>

#include "format/error.h"

namespace oq {
namespace {

using Json = Results::Json;

double middle(const std::vector<double>& sorted) { return sorted[sorted.size() / 2]; }

/// A test's columns. Returns the share of the read bandwidth, or 0: it is no decode test.
double add_test(Json& columns, const Json& test) {
  const auto name = test.at("test").get<std::string>();
  const double rate = test.at("tokens_per_second");
  columns[name + ", tokens/s"] = rate;
  const auto peer = test.value("peer_rates", std::vector<double>());
  if (!peer.empty()) {
    columns[name + ", peer's"] = middle(peer);
    columns[name + ", ratio"] = rate / middle(peer);
  }
  const auto shares = test.value("shares_of_read_bandwidth", std::vector<double>());
  return shares.empty() ? 0 : middle(shares);
}

Json columns_of(const Json& report, const ModelAims& aims) {
  Json columns = {{"bits/weight", report.at("bits_per_weight")}};
  double share = 0;
  for (const Json& test : report.at("results")) {
    if (const double found = add_test(columns, test); found > 0) share = found;
  }
  const double gigabytes = report.at("device_memory").get<double>() / 1e9;
  if (share > 0) columns["share of read bandwidth"] = share;
  columns["read GB/s"] = report.at("read_bandwidth").get<double>() / 1e9;
  columns["device memory GB"] = gigabytes;
  columns["backend"] = report.at("backend");
  if (aims.share > 0) hold_to(columns, fmt::format("share {}", aims.share), share >= aims.share);
  if (aims.gigabytes > 0) {
    hold_to(columns, fmt::format("{} GB", aims.gigabytes), gigabytes <= aims.gigabytes);
  }
  return columns;
}

}  // namespace

Results::Json model_columns(const std::string& report, const ModelAims& aims) {
  try {
    return columns_of(Json::parse(report), aims);
  } catch (const Json::exception& e) {
    throw Error(
        {.what = "not what oq-bench --json prints", .where = "standard input", .found = e.what()});
  }
}

}  // namespace oq
