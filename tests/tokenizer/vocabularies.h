#pragma once

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/tokenizer/tokenizer_data.h"
#include "tests/support.h"
#include "tests/tokenizer/real_vocabularies.h"
#include "tools/convert/gguf.h"
#include "tools/convert/tokenizer_import.h"
#include "tools/convert/tokenizer_json.h"
#include "tools/tensor_files/mapped_file.h"

namespace oq::test {

/// The GGUF of SmolLM2 that OQ_SMOLLM2_GGUF names; says so where there is none.
inline std::optional<std::filesystem::path> smollm2_gguf() {
  const char* path = std::getenv("OQ_SMOLLM2_GGUF");
  if (path != nullptr && std::filesystem::exists(path)) return path;
  std::fprintf(stderr, "SKIPPED: needs OQ_SMOLLM2_GGUF, the path of SmolLM2's GGUF\n");
  return std::nullopt;
}

inline TokenizerData gguf_data(const std::filesystem::path& path) {
  const MappedFile file(path);
  return convert::import_gguf_tokenizer(convert::GgufFile(file.bytes(), path.string()));
}

/// A named vocabulary from outside: from the files "smollm2", "gpt2", "falcon" (GGUF) and "llama2"
/// (tokenizer.model), or from what real_vocabularies.h makes of them: "llama2-gguf", "opt",
/// "falcon-json", and the names of `tokenizer_json`.
inline std::optional<TokenizerData> vocabulary(const std::string& name) {
  if (name == "llama2" || name == "llama2-gguf") {
    const auto path = data("tokenizers/llama2.tokenizer.model");
    if (!path) return std::nullopt;
    if (name == "llama2") return convert::import_tokenizer_file(*path);
    const std::string bytes = sentencepiece_gguf(read_file(*path));
    return convert::import_gguf_tokenizer(
        convert::GgufFile(std::as_bytes(std::span(bytes)), "llama2.gguf"));
  }
  if (name == "opt") {
    const TempDir folder;
    if (!write_opt_files(folder.path())) return std::nullopt;
    return convert::import_hf_tokenizer(folder.path());
  }
  if (name == "smollm2" || name == "gpt2" || name == "falcon") {
    const auto path = name == "smollm2" ? smollm2_gguf()
                      : name == "gpt2"  ? data("tokenizers/ggml-vocab-gpt-2.gguf")
                                        : data("tokenizers/ggml-vocab-falcon.gguf");
    return path ? std::optional(gguf_data(*path)) : std::nullopt;
  }
  const auto root = tokenizer_json(name == "falcon-json" ? "falcon" : name);
  return root ? std::optional(convert::tokenizer_from_json(*root, name)) : std::nullopt;
}

/// Byte-level BPE over all 256 bytes, ids 0..255; then tokens and merges of "ab", "abc", "aa",
/// "aaaa", " a" and "11"; then added ones.
inline TokenizerData small_bpe() {
  TokenizerData d;
  d.kind = TokenizerData::Kind::bpe;
  for (int b = 0; b < 256; ++b) d.tokens.add(std::string(1, char(b)), {});
  for (const char* t : {"ab", "abc", "aa", "aaaa", " a", "11"}) d.tokens.add(t, {});
  d.merges = {{'a', 'b'}, {256, 'c'}, {'a', 'a'}, {258, 258}, {' ', 'a'}, {'1', '1'}};
  d.tokens.add("<s>", {.type = TokenType::special});        // 262
  d.tokens.add("<s><s>", {.type = TokenType::special});     // 263
  d.tokens.add("<tag>", {.type = TokenType::added});        // 264
  d.tokens.add("<pad>", {TokenType::special, true, true});  // 265
  d.bos = 262;
  d.stop_ids = {263};
  return d;
}

}  // namespace oq::test
