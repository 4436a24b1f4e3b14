#include "tools/convert/tensor_names.h"

#include <algorithm>
#include <charconv>

#include <fmt/format.h>

namespace oq::convert {
namespace {

constexpr std::string_view kHole = "{}";

bool has_prefix(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

/// With the family's prefix, or without.
const SourceTensor* find(const Family& family, const Checkpoint& c, std::string_view name) {
  if (const SourceTensor* t = c.find(name)) return t;
  if (c.dialect() != Dialect::hf || !has_prefix(name, family.prefix)) return nullptr;
  return c.find(name.substr(family.prefix.size()));
}

uint64_t number(std::string_view digits) {
  uint64_t value = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return value;
}

}  // namespace

bool match(std::string_view pattern, std::string_view name,
           std::vector<std::string_view>& numbers) {
  numbers.clear();
  while (true) {
    const size_t hole = pattern.find(kHole);
    const std::string_view literal = pattern.substr(0, hole);
    if (!has_prefix(name, literal)) return false;
    name.remove_prefix(literal.size());
    if (hole == std::string_view::npos) return name.empty();
    pattern.remove_prefix(hole + kHole.size());
    const size_t digits = std::min(name.find_first_not_of("0123456789"), name.size());
    if (digits == 0) return false;
    numbers.push_back(name.substr(0, digits));
    name.remove_prefix(digits);
  }
}

std::string fill(std::string_view pattern, const std::vector<std::string_view>& numbers) {
  std::string out;
  for (std::string_view n : numbers) {
    const size_t hole = pattern.find(kHole);
    if (hole == std::string_view::npos) break;
    out += fmt::format("{}{}", pattern.substr(0, hole), n);
    pattern.remove_prefix(hole + kHole.size());
  }
  return out += pattern;
}

Source find_source(const Family& family, const Checkpoint& c, std::string_view oq_name) {
  const bool gguf = c.dialect() == Dialect::gguf;
  const std::string_view bias = ".bias";
  const bool is_bias =
      oq_name.size() > bias.size() && oq_name.substr(oq_name.size() - bias.size()) == bias;
  const std::string_view stem = oq_name.substr(0, oq_name.size() - (is_bias ? bias.size() : 0));
  Source first;
  std::vector<std::string_view> numbers;
  for (const TensorNames& names : family.tensors) {
    const std::string_view pattern = gguf ? names.gguf : names.hf;
    if (pattern.empty() || !match(names.oq, stem, numbers)) continue;
    Source source;
    source.name = fill(pattern, numbers) + (is_bias ? ".bias" : ".weight");
    source.tensor = find(family, c, source.name);
    source.layout = gguf ? names.gguf_layout : names.hf_layout;
    source.expert = numbers.size() < 2 ? 0 : number(numbers[1]);
    if (source.tensor != nullptr) return source;
    if (first.name.empty()) first = std::move(source);
  }
  if (!first.name.empty()) return first;
  throw Error({.what = fmt::format("family '{}' has no source for tensor '{}' in this format",
                                   family.name, oq_name),
               .where = c.config().where(),
               .hint = "the settings are not those of such a model"});
}

bool ignored(const Family& family, const ModelConfig& config, const Checkpoint& c,
             std::string_view name) {
  std::vector<std::string_view> numbers;
  for (std::string_view pattern : family.ignored) {
    if (match(pattern, name, numbers)) return true;
    if (c.dialect() == Dialect::hf && has_prefix(pattern, family.prefix) &&
        match(pattern.substr(family.prefix.size()), name, numbers)) {
      return true;
    }
  }
  // Some tools write the head of a tied model out a second time.
  return config.tied_head && find_source(family, c, "head").name == name;
}

}  // namespace oq::convert
