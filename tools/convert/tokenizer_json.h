#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "runtime/tokenizer/tokenizer_data.h"

namespace oq::convert {

/// The contents of a tokenizer.json (Hugging Face `tokenizers`) that holds byte-level BPE: tokens,
/// merges, pre-tokenizer, and whether a sequence starts with BOS.
///
/// Takes only what OQ runs with the same ids. Everything else is refused by name: other models,
/// normalizers, pre-tokenizers that drop or mark text, single_word tokens. All failures throw
/// oq::Error naming `where` and the key.
TokenizerData tokenizer_from_json(const nlohmann::json& root, const std::string& where);

}  // namespace oq::convert
