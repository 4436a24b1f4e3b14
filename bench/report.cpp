#include "bench/report.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace oq {
namespace {

/// In quotes where a comma, a quote or a line's end would break the line.
std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\n") == text.npos) return text;
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"') out += '"';
    out += c;
  }
  return out + '"';
}

std::string device_notes(const BenchReport& r) {
  return fmt::format(
      "read bandwidth {:.1f} GB/s on the device; {:.1f} MB of weights per token; {:.1f} MB, {} in "
      "{:.1f} ms; {:.2f} GB of the device's memory\n",
      r.device / 1e9, double(r.bytes_per_token) / 1e6, double(r.model_bytes) / 1e6,
      r.synthetic ? "made" : "loaded", r.load_seconds * 1e3, double(*r.device_memory) / 1e9);
}

std::string notes(const BenchReport& r) {
  if (r.device_memory) return device_notes(r);
  std::string pages;
  if (r.weights_on_huge_pages >= 0) {
    pages = fmt::format(", {:.0f} % of them on huge pages", r.weights_on_huge_pages * 100);
  }
  if (r.in_place > 0) pages += fmt::format(", read in place at {:.1f} GB/s", r.in_place / 1e9);
  return fmt::format(
      "read bandwidth {:.1f} GB/s on huge pages, {:.1f} on small; {:.1f} MB of weights per "
      "token{}; {:.1f} MB, {} in {:.1f} ms; peak memory with the probe {:.0f} MiB\n",
      r.huge_pages / 1e9, r.small_pages / 1e9, double(r.bytes_per_token) / 1e6, pages,
      double(r.model_bytes) / 1e6, r.synthetic ? "made" : "loaded", r.load_seconds * 1e3,
      double(r.peak_memory >> 20));
}

}  // namespace

std::string to_markdown(const BenchReport& r) {
  std::string t =
      "| model | scheme | bits/weight | backend | test | tokens/s | min | max | GB/s | "
      "share of read bandwidth |";
  t += r.peer ? " peer | ratio |\n" : "\n";
  t += "|---|---|---|---|---|---|---|---|---|---|";
  t += r.peer ? "---|---|\n" : "\n";
  for (const Throughput& row : r.results) {
    const bool reads = row.test.decode;
    t += fmt::format("| {} | {} | {:.2f} | {} | {} | {:.1f} | {:.1f} | {:.1f} | {} | {} |", r.model,
                     r.scheme, r.bits_per_weight, r.backend, row.test.name(), row.median(),
                     row.rates.front(), row.rates.back(),
                     reads ? fmt::format("{:.1f}", row.bandwidth() / 1e9) : "",
                     reads ? fmt::format("{:.2f}", row.share()) : "");
    if (r.peer) {
      const std::vector<double> theirs = r.peer->rates(row.test.name());
      t += theirs.empty()
               ? " | |"
               : fmt::format(" {:.1f} | {:.2f} |", median(theirs), row.median() / median(theirs));
    }
    t += "\n";
  }
  return t + "\n" + notes(r);
}

std::string to_csv(const BenchReport& r) {
  std::string t =
      "model,scheme,bits_per_weight,backend,test,tokens_per_second,min,max,bytes_per_token,"
      "share_of_read_bandwidth,read_bandwidth,read_bandwidth_in_place,model_bytes,load_seconds,"
      "peak_memory,peer_tokens_per_second\n";
  for (const Throughput& row : r.results) {
    const std::vector<double> theirs = r.peer ? r.peer->rates(row.test.name()) : row.rates;
    t += fmt::format(
        "{},{},{:.4f},{},{},{:.3f},{:.3f},{:.3f},{:.0f},{:.4f},{:.0f},{:.0f},{},{:.6f},{},{}\n",
        csv_field(r.model), r.scheme, r.bits_per_weight, csv_field(r.backend), row.test.name(),
        row.median(), row.rates.front(), row.rates.back(), row.bytes_per_token, row.share(),
        r.read_bandwidth(), r.in_place, r.model_bytes, r.load_seconds, r.peak_memory,
        r.peer && !theirs.empty() ? fmt::format("{:.3f}", median(theirs)) : "");
  }
  return t;
}

std::string to_json(const BenchReport& r) {
  nlohmann::json results = nlohmann::json::array();
  for (const Throughput& row : r.results) {
    nlohmann::json object = {{"test", row.test.name()},
                             {"tokens_per_second", row.median()},
                             {"rates", row.rates},
                             {"bytes_per_token", row.bytes_per_token}};
    if (row.test.decode) object["shares_of_read_bandwidth"] = row.shares;
    if (r.peer) object["peer_rates"] = r.peer->rates(row.test.name());
    results.push_back(std::move(object));
  }
  const nlohmann::json object = {{"model", r.model},
                                 {"synthetic", r.synthetic},
                                 {"scheme", r.scheme},
                                 {"backend", r.backend},
                                 {"bits_per_weight", r.bits_per_weight},
                                 {"load_seconds", r.load_seconds},
                                 {"model_bytes", r.model_bytes},
                                 {"device_memory", r.device_memory.value_or(0)},
                                 {"peak_memory", r.peak_memory},
                                 {"read_bandwidth", r.read_bandwidth()},
                                 {"read_bandwidth_in_place", r.in_place},
                                 {"weights_on_huge_pages", r.weights_on_huge_pages},
                                 {"weight_bytes_per_token", r.bytes_per_token},
                                 {"results", results}};
  return object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace oq
