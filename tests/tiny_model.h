#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace oq::test {

/// A LLaMA of about 260 thousand random weights with awkward sizes: grouped-query attention, a
/// hidden width that is no power of two, a vocabulary that fills no panel. Equal seeds and options
/// give equal bytes on every machine.
struct TinyOptions {
  int hidden = 96, heads = 6, kv_heads = 2, head_dim = 16, mlp = 160, blocks = 3, context = 256;
  bool tied = false;
  bool biases = false;        ///< on q, k, v and o, and in the MLP
  std::string dtype = "F32";  ///< of matrices: F32, F16, BF16; in a GGUF also Q8_0
  int shards = 1;             ///< HF: above 1, that many files and an index
  bool tokenizer = true;
  std::string rope_scaling;  ///< HF: a JSON object, put into config.json
  double rope_theta = 10000.0;
};

struct TinyTensor {
  std::string hf_name, gguf_name;
  uint64_t rows = 1, cols = 1;  ///< a vector is one row
  std::vector<float> values;    ///< [rows][cols], q and k in HF's order
  bool paired = false;          ///< q and k: GGUF keeps their rows in pairs
};

/// The weights, before they are rounded to a dtype.
std::vector<TinyTensor> tiny_tensors(uint64_t seed, const TinyOptions& options = {});

/// Byte-level BPE: ids 0..2 are <|endoftext|>, <|im_start|> (BOS), <|im_end|> (EOS); then the 256
/// bytes; then one token per merge. Digits stand alone, as SmolLM2 has it.
struct TinyVocabulary {
  std::vector<std::string> tokens;                          ///< as tokenizer.json spells them
  std::vector<std::pair<std::string, std::string>> merges;  ///< best first
};
const TinyVocabulary& tiny_vocabulary();

/// A folder with config.json, safetensors and tokenizer.json. The folder is made.
void write_tiny_hf(const std::filesystem::path& folder, uint64_t seed,
                   const TinyOptions& options = {});
/// The same model as a GGUF file.
void write_tiny_gguf(const std::filesystem::path& path, uint64_t seed,
                     const TinyOptions& options = {});

/// Bytes of a safetensors file. Shapes: [cols] for one row, else [rows, cols].
std::string safetensors_bytes(const std::vector<TinyTensor>& tensors, const std::string& dtype);

/// Floats in a tensor type of GGUF or safetensors (F32, F16, BF16, Q8_0).
std::string encode_floats(const std::vector<float>& values, const std::string& dtype);

}  // namespace oq::test
