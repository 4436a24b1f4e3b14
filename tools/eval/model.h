#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "format/scheme.h"
#include "runtime/decoder.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tools/common/backend.h"

namespace oq {

/// A model under test: an open .oq file with its tokenizer, and how to run it. Decoders are made
/// for each measurement in the size that it needs; they share the mapped weights.
class Model {
 public:
  struct Options {
    tool::BackendChoice backend = {};
    bool exact = false;  ///< as in Decoder::Options
    int kv_bits = 0;
    std::string weak = {};  ///< a file of weak columns to run with (format/weak_file.h)
  };

  /// Throws oq::Error when the file is no .oq file, or has no usable config or tokenizer.
  Model(const std::string& path, Options options);

  const std::string& path() const { return path_; }
  const Scheme& scheme() const { return scheme_; }
  const ModelConfig& config() const { return config_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  /// As stored: of the blocks' linears, with scales, zero points and weak columns.
  double bits_per_weight() const;

  /// `step`: the tokens that belong to one forward call. A scheme with one activation range per
  /// tensor sees them in one step, as its calibration did; all others give the same bits in steps
  /// of any size, and get small ones, since a step's logits take 4 bytes x vocabulary a token.
  Decoder decoder(int64_t context, int64_t step, int64_t sequences = 1) const;

  /// Ids of a whole text, with BOS where the model wants one.
  std::vector<int32_t> encode_text(const std::string& text) const;

 private:
  std::string path_;
  Options options_;
  std::shared_ptr<const File> file_;
  ModelConfig config_;
  Scheme scheme_;
  std::unique_ptr<const Tokenizer> tokenizer_;
};

/// Throws oq::Error when the ids of one stand for other tokens in the other.
void check_same_vocabulary(const Model& a, const Model& b);

}  // namespace oq
