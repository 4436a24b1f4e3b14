#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "runtime/tokenizer/tokenizer_data.h"
#include "tools/convert/gguf.h"

namespace oq::convert {

/// The tokenizer of a GGUF file: byte-level BPE ("gpt2") or sentencepiece ("llama"), whose
/// vocabulary becomes a sentencepiece model again. Kind::none where the file has none. Throws
/// oq::Error on what OQ cannot run with the same ids, an unknown pre-tokenizer above all.
TokenizerData import_gguf_tokenizer(const GgufFile& gguf);

/// The tokenizer of a Hugging Face folder: tokenizer.model, or else tokenizer.json, or else
/// vocab.json with merges.txt. BOS, stop ids and chat template come from tokenizer_config.json,
/// special_tokens_map.json, generation_config.json and chat_template.jinja. Kind::none where the
/// folder has none.
TokenizerData import_hf_tokenizer(const std::filesystem::path& folder);

/// Whether a file is a whole tokenizer by its name: a sentencepiece model (*.model) or a
/// tokenizer.json (*.json).
bool is_tokenizer_file(const std::filesystem::path& path);
/// Such a file alone, with what it says of BOS itself. PRECOND: is_tokenizer_file(path).
TokenizerData import_tokenizer_file(const std::filesystem::path& path);

/// Throws oq::Error when there are more tokens than rows to embed them. Fewer are right: models
/// round their embedding up, as OPT does. `where` names the checkpoint.
void check_vocabulary(const TokenizerData& data, int64_t embedding_rows, const std::string& where);

}  // namespace oq::convert
