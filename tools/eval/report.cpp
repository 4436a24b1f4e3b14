#include "tools/eval/report.h"

#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace oq {
namespace {

std::string line(const std::vector<std::string>& cells) {
  return fmt::format("| {} |\n", fmt::join(cells, " | "));
}

std::string head_of(const std::vector<std::string>& names) {
  std::string rule = "|";
  for (size_t i = 0; i < names.size(); ++i) rule += "---|";
  return line(names) + rule + "\n";
}

std::vector<std::string> cells_of(const Model& m) {
  return {m.path(), m.scheme().str(), fmt::format("{:.3f}", m.bits_per_weight())};
}

void append(std::vector<std::string>& cells, std::initializer_list<std::string> more) {
  cells.insert(cells.end(), more);
}

/// A standard error, which one value alone does not have.
std::string error_cell(double error, int digits) {
  return std::isnan(error) ? "" : fmt::format("{:.{}f}", error, digits);
}

/// " +- 0.012", or nothing.
std::string plus_minus(double error) {
  return std::isnan(error) ? "" : fmt::format(" +- {:.3f}", error);
}

std::string percent(double share) { return fmt::format("{:.2f}", 100 * share); }
std::string percent_error(double share) { return error_cell(100 * share, 2); }

nlohmann::json json_of(const Model& m) {
  return {
      {"model", m.path()}, {"scheme", m.scheme().str()}, {"bits_per_weight", m.bits_per_weight()}};
}

nlohmann::json json_of(const Measured& m) {
  return {{"value", m.value}, {"standard_error", m.standard_error}};
}

}  // namespace

std::string PerplexityTable::head() const {
  std::vector<std::string> names = {"model", "scheme", "bits/weight"};
  if (texts_) append(names, {"text"});
  append(names, {"perplexity", "+-"});
  if (models_) append(names, {"difference", "+-"});
  append(names, {"windows", "tokens"});
  return head_of(names);
}

std::string PerplexityTable::row(const PerplexityRow& r) const {
  std::vector<std::string> cells = cells_of(*r.model);
  if (texts_) append(cells, {r.text});
  append(cells,
         {fmt::format("{:.4f}", r.result.perplexity), error_cell(r.result.standard_error, 4)});
  if (models_ && r.difference) {
    append(cells, {fmt::format("{:+.4f}", r.difference->perplexity),
                   error_cell(r.difference->perplexity_standard_error, 4)});
  } else if (models_) {
    append(cells, {"", ""});
  }
  append(cells, {std::to_string(r.result.windows), std::to_string(r.result.tokens)});
  return line(cells);
}

std::string divergence_head() {
  return head_of({"model", "scheme", "bits/weight", "KL mean", "+-", "KL 99 %", "same top-1, %",
                  "+-", "windows", "tokens"});
}

std::string divergence_row(const DivergenceRow& r) {
  std::vector<std::string> cells = cells_of(*r.model);
  const Divergence& d = r.result;
  append(cells, {fmt::format("{:.6f}", d.mean), error_cell(d.standard_error, 6),
                 fmt::format("{:.5f}", d.percentile_99), percent(d.agreement),
                 percent_error(d.agreement_standard_error), std::to_string(d.windows),
                 std::to_string(d.tokens)});
  return line(cells);
}

std::string task_head() {
  return head_of({"model", "scheme", "bits/weight", "task", "acc, %", "+-", "acc_norm, %", "+-",
                  "perplexity", "questions"});
}

std::string task_row(const TaskRow& r) {
  std::vector<std::string> cells = cells_of(*r.model);
  const auto& norm = r.result.accuracy_norm;
  const auto& words = r.result.perplexity;
  append(cells,
         {r.task, percent(r.result.accuracy.value), percent_error(r.result.accuracy.standard_error),
          norm ? percent(norm->value) : "", norm ? percent_error(norm->standard_error) : "",
          words ? fmt::format("{:.3f}", words->value) + plus_minus(words->standard_error) : "",
          std::to_string(r.result.questions)});
  return line(cells);
}

nlohmann::json to_json(const PerplexityRow& r) {
  nlohmann::json row = json_of(*r.model);
  row.update({{"text", r.text},
              {"perplexity", r.result.perplexity},
              {"standard_error", r.result.standard_error},
              {"windows", r.result.windows},
              {"tokens", r.result.tokens},
              {"window_nll", r.result.window_nll}});
  if (r.difference) {
    row["difference"] = {{"nll", r.difference->nll},
                         {"nll_standard_error", r.difference->nll_standard_error},
                         {"perplexity", r.difference->perplexity},
                         {"perplexity_standard_error", r.difference->perplexity_standard_error}};
  }
  return row;
}

nlohmann::json to_json(const DivergenceRow& r) {
  nlohmann::json row = json_of(*r.model);
  row.update({{"kl_mean", r.result.mean},
              {"kl_standard_error", r.result.standard_error},
              {"kl_percentile_99", r.result.percentile_99},
              {"agreement", r.result.agreement},
              {"agreement_standard_error", r.result.agreement_standard_error},
              {"windows", r.result.windows},
              {"tokens", r.result.tokens}});
  return row;
}

nlohmann::json to_json(const TaskRow& r) {
  nlohmann::json row = json_of(*r.model);
  row.update({{"task", r.task},
              {"file", r.path},
              {"questions", r.result.questions},
              {"acc", json_of(r.result.accuracy)},
              {"log_likelihoods", r.result.log_likelihoods}});
  if (r.result.accuracy_norm) row["acc_norm"] = json_of(*r.result.accuracy_norm);
  if (r.result.perplexity) row["perplexity"] = json_of(*r.result.perplexity);
  return row;
}

}  // namespace oq
