#pragma once

#include <filesystem>

#include "runtime/tokenizer/tokenizer_data.h"
#include "tools/convert/gguf.h"

namespace oq::convert {

/// The tokenizer of a GGUF file: byte-level BPE ("gpt2") or sentencepiece ("llama"), whose
/// vocabulary becomes a sentencepiece model again. Kind::none where the file has none. Throws
/// oq::Error on what OQ cannot run with the same ids, an unknown pre-tokenizer above all.
TokenizerData import_gguf_tokenizer(const GgufFile& gguf);

/// The tokenizer of a Hugging Face folder: tokenizer.model, or else tokenizer.json. BOS, stop ids
/// and chat template come from tokenizer_config.json, special_tokens_map.json,
/// generation_config.json and chat_template.jinja. Kind::none where the folder has none.
TokenizerData import_hf_tokenizer(const std::filesystem::path& folder);

}  // namespace oq::convert
