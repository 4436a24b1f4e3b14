#include "tools/convert/binding.h"

#include <algorithm>
#include <unordered_set>

#include <fmt/format.h>

namespace oq::convert {
namespace {

constexpr std::string_view kHole = "{}";

std::string_view source_name(const TensorNames& names, Dialect dialect) {
  return dialect == Dialect::hf ? names.hf : names.gguf;
}

/// "blocks.7.q" by the pattern "blocks.{}.q" is "7"; false where the name is not of the pattern.
bool match(std::string_view pattern, std::string_view name, std::string_view& number) {
  const size_t hole = pattern.find(kHole);
  if (hole == std::string_view::npos) return number = {}, name == pattern;
  const std::string_view before = pattern.substr(0, hole);
  const std::string_view after = pattern.substr(hole + kHole.size());
  if (name.size() <= before.size() + after.size() || name.substr(0, before.size()) != before ||
      name.substr(name.size() - after.size()) != after) {
    return false;
  }
  number = name.substr(before.size(), name.size() - before.size() - after.size());
  return std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; });
}

std::string fill(std::string_view pattern, std::string_view number) {
  const size_t hole = pattern.find(kHole);
  if (hole == std::string_view::npos) return std::string(pattern);
  return fmt::format("{}{}{}", pattern.substr(0, hole), number,
                     pattern.substr(hole + kHole.size()));
}

bool ignored(const Family& family, const ModelConfig& config, Dialect dialect,
             std::string_view name) {
  std::string_view number;
  const bool listed = std::any_of(family.ignored.begin(), family.ignored.end(),
                                  [&](std::string_view p) { return match(p, name, number); });
  if (listed || !config.tied_head) return listed;
  // Some tools write the head of a tied model out a second time.
  return std::any_of(family.tensors.begin(), family.tensors.end(), [&](const TensorNames& names) {
    return names.oq == "head" && source_name(names, dialect) == name;
  });
}

Binding bind(const Family& family, const TensorSpec& spec, const Checkpoint& c) {
  if (spec.name == "rope.inv_freq") return {spec};
  for (const TensorNames& names : family.tensors) {
    std::string_view number;
    if (!match(names.oq, spec.name, number)) continue;
    const std::string name = fill(source_name(names, c.dialect()), number);
    const SourceTensor* source = c.find(name);
    if (source == nullptr) {
      throw Error({.what = fmt::format("tensor '{}' is missing", name),
                   .where = c.config().where(),
                   .hint = "the checkpoint is incomplete, or its settings are another model's"});
    }
    if (source->rows != uint64_t(spec.rows) || source->cols != uint64_t(spec.cols)) {
      throw Error({.what = fmt::format("tensor '{}' disagrees with the settings", name),
                   .where = c.config().where(),
                   .expected = fmt::format("[{}, {}]", spec.rows, spec.cols),
                   .found = fmt::format("[{}, {}]", source->rows, source->cols),
                   .hint = "settings and weights are of different models"});
    }
    const bool gguf = c.dialect() == Dialect::gguf;
    return {spec, source, gguf ? names.gguf_order : RowOrder::halves};
  }
  throw Error(
      {.what = fmt::format("family '{}' has no source for tensor '{}'", family.name, spec.name),
       .where = "the converter's table of families"});
}

void refuse_unused(const Family& family, const ModelConfig& config, const Checkpoint& c,
                   const std::vector<Binding>& bindings) {
  std::unordered_set<const SourceTensor*> used;
  for (const Binding& b : bindings) used.insert(b.source);
  std::vector<std::string_view> unused;
  for (const SourceTensor& t : c.tensors()) {
    if (used.count(&t) == 0 && !ignored(family, config, c.dialect(), t.name)) {
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

std::vector<Binding> bind_tensors(const Family& family, const ModelConfig& config,
                                  const Checkpoint& checkpoint) {
  std::vector<Binding> bindings;
  for (const TensorSpec& spec : tensor_specs(config)) {
    bindings.push_back(bind(family, spec, checkpoint));
  }
  refuse_unused(family, config, checkpoint, bindings);
  return bindings;
}

}  // namespace oq::convert
