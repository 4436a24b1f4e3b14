#pragma once

#include <cstddef>
#include <vector>

#include "tools/convert/json_reader.h"
#include "tools/convert/spelling.h"

namespace oq::convert {

/// Tokens put in their places by id, as JSON lists them in any order. Ids that no token has are
/// holes, which are legal; a hundred of them for every token are not.
class TokenTable {
 public:
  /// `entries` is the number of tokens that the file has. PRECOND: `in` outlives the table.
  TokenTable(const JsonReader& in, size_t entries) : in_(in), limit_(entries * 100) {}

  /// A token of the vocabulary. `key` is what errors call the list that it is from. Throws
  /// oq::Error where the id is taken, or is not below the limit.
  void add(const nlohmann::json& id, const char* key, const SourceToken& token);

  /// A token that is added to the vocabulary, where it may well be already. Throws oq::Error where
  /// the id is not below the limit.
  void put(const nlohmann::json& id, const char* key, const SourceToken& token);

  const std::vector<SourceToken>& tokens() const { return tokens_; }

 private:
  SourceToken& place(size_t id);

  const JsonReader& in_;
  size_t limit_;
  std::vector<SourceToken> tokens_;
  std::vector<bool> taken_;
};

}  // namespace oq::convert
