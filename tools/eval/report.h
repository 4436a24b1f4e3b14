#pragma once

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "tools/eval/divergence.h"
#include "tools/eval/model.h"
#include "tools/eval/perplexity.h"
#include "tools/eval/task.h"

/// What oq-eval prints: one Markdown table for each kind of measurement, or JSON.
namespace oq {

struct PerplexityRow {
  const Model* model = nullptr;
  std::string text;  ///< path
  Perplexity result;
  std::optional<Difference> difference;  ///< from the first model's row of this text
};

struct DivergenceRow {
  const Model* model = nullptr;
  Divergence result;
};

struct TaskRow {
  const Model* model = nullptr;
  std::string task, path;
  TaskResult result;
};

/// A table whose rows come one by one: hours may lie between them.
class PerplexityTable {
 public:
  /// Columns that would be the same or empty in every row are left out.
  PerplexityTable(bool several_models, bool several_texts)
      : models_(several_models), texts_(several_texts) {}
  std::string head() const;
  std::string row(const PerplexityRow& row) const;

 private:
  bool models_, texts_;
};

std::string divergence_head();
std::string divergence_row(const DivergenceRow& row);
std::string task_head();
std::string task_row(const TaskRow& row);

nlohmann::json to_json(const PerplexityRow& row);
nlohmann::json to_json(const DivergenceRow& row);
nlohmann::json to_json(const TaskRow& row);

}  // namespace oq
