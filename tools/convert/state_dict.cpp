#include "tools/convert/state_dict.h"

#include <algorithm>

#include <fmt/format.h>

#include "format/error.h"

namespace oq::convert {
namespace {

/// What training scripts call the state_dict among other things that they save with it.
constexpr std::string_view kNested[] = {"state_dict", "model_state_dict", "model", "module"};

SourceTensor source_of(std::string_view name, const torch::Value& value) {
  SourceTensor source;
  source.name = name;
  const torch::Tensor* t = value.as<torch::Tensor>();
  if (t == nullptr) {
    source.dtype = value.kind();
    return source;
  }
  source.dtype = t->dtype->name;
  source.type = find_ggml_type(t->dtype->name);
  if (!t->shape.empty()) source.cols = t->shape.back();
  for (size_t i = 0; i + 1 < t->shape.size(); ++i) source.rows *= t->shape[i];
  source.data = t->place();
  source.view = t;
  return source;
}

Error no_state_dict(const torch::Dict& dict, const std::string& where) {
  const auto nested = std::find_if(std::begin(kNested), std::end(kNested), [&](auto name) {
    const torch::Value* value = dict.find(name);
    return value != nullptr && value->as<torch::Dict>() != nullptr;
  });
  return Error({.what = "holds no tensor",
                .where = where,
                .expected = "a state_dict",
                .found = nested != std::end(kNested)
                             ? fmt::format("a dict of other things, among them '{}'", *nested)
                             : fmt::format("{} entries of other kinds", dict.items().size()),
                .hint = "save the model's state_dict alone"});
}

}  // namespace

std::vector<SourceTensor> state_dict(const torch::Dict& dict, const std::string& where) {
  std::vector<SourceTensor> sources;
  bool any = false;
  for (const auto& [key, value] : dict.items()) {
    const auto* name = key.as<std::string_view>();
    if (name == nullptr) {
      throw Error({.what = "has an entry without a name",
                   .where = where,
                   .expected = "a state_dict",
                   .hint = "save the model's state_dict alone"});
    }
    any |= value.as<torch::Tensor>() != nullptr;
    sources.push_back(source_of(*name, value));
  }
  if (!any) throw no_state_dict(dict, where);
  return sources;
}

}  // namespace oq::convert
