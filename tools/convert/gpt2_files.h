#pragma once

#include <filesystem>

#include "runtime/tokenizer/tokenizer_data.h"

namespace oq::convert {

/// Byte-level BPE from the two files of GPT-2's first release, vocab.json and merges.txt, as OPT
/// still has it. What is special, whether texts get a space before them, and which class cuts the
/// words (GPT2Tokenizer or Qwen2Tokenizer) stands in tokenizer_config.json and
/// special_tokens_map.json; without them it is GPT-2's own <|endoftext|>.
/// Throws oq::Error naming the file and what is wrong in it.
TokenizerData read_gpt2_files(const std::filesystem::path& folder);

}  // namespace oq::convert
