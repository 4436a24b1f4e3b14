#pragma once

#include "tools/convert/json_reader.h"
#include "tools/convert/pretokenizers.h"
#include "tools/convert/spelling.h"

namespace oq::convert {

/// `normalizer` and `pre_tokenizer` of a tokenizer.json, for a model whose tokens are spelt so.
/// Takes only what OQ runs with the same ids; throws oq::Error naming everything else.
Pretokenization read_pretokenization(const JsonReader& in, const nlohmann::json& root,
                                     Spelling spelling);

}  // namespace oq::convert
