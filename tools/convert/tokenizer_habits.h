#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/tokenizer/tokenizer_data.h"

namespace oq::convert {

/// What a checkpoint says about a tokenizer beside its vocabulary.
struct TokenizerHabits {
  std::string where;              ///< for errors
  std::string bos, eos;           ///< names of tokens, "" where not said
  std::vector<int64_t> stop_ids;  ///< of the model, which may reach beyond the tokenizer
  std::optional<bool> adds_bos;
  std::string jinja;  ///< the chat template's source
};

/// Checks the vocabulary, and fills in BOS, stop ids and the chat template. Throws oq::Error.
TokenizerData with_habits(TokenizerData data, const TokenizerHabits& habits);

}  // namespace oq::convert
