#include "tools/convert/families/reading.h"

#include <algorithm>
#include <set>

#include <fmt/format.h>

namespace oq::convert {

Error unusable(const Checkpoint& c, std::string what, std::string found, std::string hint) {
  return Error({.what = std::move(what),
                .where = c.config().where(),
                .found = std::move(found),
                .hint = std::move(hint)});
}

int64_t divided(const Checkpoint& c, int64_t total, int64_t parts) {
  if (parts >= 1) return total / parts;
  throw unusable(c, "has no attention heads", std::to_string(parts), "it is damaged");
}

int64_t four_times(int64_t width) { return 4 * std::clamp<int64_t>(width, 0, int64_t(1) << 32); }

int64_t integer_of(const Config& settings, std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    if (settings.contains(key)) return settings.integer(key);
  }
  return settings.integer(*keys.begin());
}

int64_t uniform(const Checkpoint& c, const std::string& key, int64_t fallback) {
  const Config::Value v = c.config().find(key);
  const auto* list = std::get_if<std::vector<double>>(&v);
  if (list == nullptr) return c.config().integer_or(key, fallback);
  const auto odd = std::find_if_not(list->begin(), list->end(), is_whole);
  if (odd != list->end()) {
    throw unusable(c, fmt::format("setting '{}' holds what is no whole number", key),
                   fmt::format("{}", *odd), "the checkpoint is damaged");
  }
  if (list->empty() || std::set<double>(list->begin(), list->end()).size() > 1) {
    throw unusable(c, fmt::format("setting '{}' differs between blocks", key), "",
                   "such models cannot be converted");
  }
  return int64_t(list->front());
}

Activation hf_activation(const Checkpoint& c, const char* key, const char* fallback) {
  static constexpr std::pair<std::string_view, Activation> kNames[] = {
      {"silu", Activation::silu},
      {"swish", Activation::silu},
      {"gelu", Activation::gelu},
      {"gelu_new", Activation::gelu_tanh},
      {"gelu_fast", Activation::gelu_tanh},
      {"gelu_pytorch_tanh", Activation::gelu_tanh},
      {"relu", Activation::relu}};
  const std::string name = c.config().text_or(key, fallback);
  for (const auto& [known, activation] : kNames) {
    if (known == name) return activation;
  }
  throw unusable(c, fmt::format("setting '{}' names an unknown activation", key), name,
                 "silu, gelu, gelu_new and relu are known");
}

void refuse_flag(const Checkpoint& c, const char* key) {
  if (!c.config().flag_or(key, false)) return;
  throw unusable(c, fmt::format("setting '{}' is true", key), "",
                 "OQ cannot run such models: nobody is known to have published one");
}

void check_sizes(const Checkpoint& c, const ModelConfig& config) {
  try {
    Metadata m;
    config.store(m);
    ModelConfig::load(m);
  } catch (const Error& e) {
    Error::Parts parts = e.parts();
    parts.where = c.config().where() + ", as " + parts.where;
    parts.hint = "the checkpoint is damaged or of a kind that OQ cannot run";
    throw Error(std::move(parts));
  }
  if (uint64_t(config.blocks) > c.tensors().size()) {
    throw unusable(c, "names more blocks than the checkpoint has tensors",
                   std::to_string(config.blocks), "the checkpoint is incomplete or damaged");
  }
  uint64_t most_rows = 0;
  for (const SourceTensor& t : c.tensors()) most_rows = std::max(most_rows, t.rows);
  if (uint64_t(config.experts) > most_rows) {
    throw unusable(c, "names more experts than a router of the checkpoint chooses from",
                   std::to_string(config.experts), "the checkpoint is incomplete or damaged");
  }
}

void check_alibi_context(const Checkpoint& c, const ModelConfig& config, const std::string& key) {
  if (config.context <= Alibi::kMaxContext) return;
  throw Error({.what = fmt::format("setting '{}' asks for more positions than a model with ALiBi "
                                   "can have here",
                                   key),
               .where = c.config().where(),
               .expected = fmt::format("at most {}", Alibi::kMaxContext),
               .found = std::to_string(config.context),
               .hint = "lower the setting: without it the model has the same weights"});
}

int64_t gguf_vocab(const Checkpoint& c) {
  const SourceTensor* embedding = c.find("token_embd.weight");
  return c.config().integer_or(c.architecture() + ".vocab_size",
                               embedding == nullptr ? 0 : int64_t(embedding->rows));
}

std::vector<float> gguf_rope_factors(const Checkpoint& c) {
  const SourceTensor* t = c.find("rope_freqs.weight");
  if (t == nullptr) return {};
  std::vector<float> factors(t->elements());
  c.read_rows(*t, 0, t->rows, factors.data());
  return factors;
}

}  // namespace oq::convert
