#include "tools/convert/token_table.h"

#include <string>

namespace oq::convert {

void TokenTable::add(const nlohmann::json& id, const char* key, const SourceToken& token) {
  const size_t i = in_.id(id, key, limit_);
  place(i) = token;
  if (taken_[i]) throw in_.error(key, "gives one id twice", std::to_string(i));
  taken_[i] = true;
}

void TokenTable::put(const nlohmann::json& id, const char* key, const SourceToken& token) {
  place(in_.id(id, key, limit_)) = token;
}

SourceToken& TokenTable::place(size_t id) {
  if (id >= tokens_.size()) {
    tokens_.resize(id + 1, {{}, {.type = TokenType::unused}});
    taken_.resize(id + 1);
  }
  return tokens_[id];
}

}  // namespace oq::convert
