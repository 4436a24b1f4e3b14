#include "tools/convert/binding.h"

#include <algorithm>
#include <unordered_set>

#include <fmt/format.h>

#include "tools/convert/tensor_names.h"

namespace oq::convert {
namespace {

bool computed(const TensorSpec& spec) {
  return spec.name == "rope.inv_freq" || spec.name == "alibi";
}

Binding bind(const Family& family, const ModelConfig& config, const TensorSpec& spec,
             const Checkpoint& c) {
  Binding b{spec, nullptr, {}};
  if (computed(spec)) return b;
  const Source source = find_source(family, c, spec.name);
  if (source.tensor == nullptr) {
    throw Error({.what = fmt::format("tensor '{}' is missing", source.name),
                 .where = c.config().where(),
                 .hint = "the checkpoint is incomplete, or its settings are another model's"});
  }
  const Slice slice =
      source.layout(config, uint64_t(b.vector() ? spec.cols : spec.rows), source.expert);
  const uint64_t rows = b.vector() ? 1 : slice.rows;
  const uint64_t cols = b.vector() ? slice.rows : uint64_t(spec.cols);
  if (source.tensor->rows != rows || source.tensor->cols != cols) {
    throw Error({.what = fmt::format("tensor '{}' disagrees with the settings", source.name),
                 .where = c.config().where(),
                 .expected = fmt::format("[{}, {}]", rows, cols),
                 .found = fmt::format("[{}, {}]", source.tensor->rows, source.tensor->cols),
                 .hint = "settings and weights are of different models"});
  }
  b.source = source.tensor;
  b.rows = slice.map;
  return b;
}

void refuse_unused(const Family& family, const ModelConfig& config, const Checkpoint& c,
                   const std::vector<Binding>& bindings) {
  std::unordered_set<const SourceTensor*> used;
  for (const Binding& b : bindings) used.insert(b.source);
  std::vector<std::string_view> unused;
  for (const SourceTensor& t : c.tensors()) {
    if (used.count(&t) == 0 && !t.optional && !ignored(family, config, c, t.name)) {
      unused.push_back(t.name);
    }
  }
  if (unused.empty()) return;
  const size_t shown = std::min<size_t>(unused.size(), 5);
  throw Error({.what = fmt::format("{} tensors are not part of a {} model with these settings",
                                   unused.size(), family.name),
               .where = c.config().where(),
               .found = fmt::format("{}{}", fmt::join(unused.begin(), unused.begin() + shown, ", "),
                                    unused.size() > shown ? ", ..." : ""),
               .hint = "settings and weights are of different models"});
}

}  // namespace

uint64_t Binding::source_bytes() const {
  if (source == nullptr) return 0;
  const uint64_t all = vector() ? source->cols : source->rows;
  const auto own = uint64_t(vector() ? spec.cols : spec.rows);
  return source->data.size() / all * own;
}

std::vector<Binding> bind_tensors(const Family& family, const ModelConfig& config,
                                  const Checkpoint& checkpoint) {
  std::vector<Binding> bindings;
  for (const TensorSpec& spec : tensor_specs(config)) {
    bindings.push_back(bind(family, config, spec, checkpoint));
  }
  refuse_unused(family, config, checkpoint, bindings);
  return bindings;
}

}  // namespace oq::convert
