#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "runtime/tokenizer/tokenizer_data.h"

namespace oq::convert {

/// The contents of a tokenizer.json (Hugging Face `tokenizers`) that holds BPE, byte-level or with
/// byte_fallback: tokens, merges, normalizer, pre-tokenizer, and whether a sequence starts with
/// BOS.
///
/// Takes only what OQ runs with the same ids. Everything else is refused by name: other models and
/// normalizers, pre-tokenizers that drop text, single_word tokens. Added tokens are looked for in
/// the text as it is, whatever their `normalized` says: no published vocabulary of these kinds has
/// one that NFC changes, and "normalized" ones under Prepend would only be found behind a space.
/// All failures throw oq::Error naming `where` and the key.
TokenizerData tokenizer_from_json(const nlohmann::json& root, const std::string& where);

}  // namespace oq::convert
