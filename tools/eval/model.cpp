#include "tools/eval/model.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "format/weak_file.h"
#include "tools/common/backend.h"

namespace oq {

Model::Model(const std::string& path, Options options)
    : path_(path), options_(std::move(options)), file_(open_with_weak(path, options_.weak)) {
  config_ = ModelConfig::load(*file_);
  scheme_ = Scheme::load(*file_);
  tokenizer_ = Tokenizer::load(*file_);
}

double Model::bits_per_weight() const { return linear_bytes(*file_, config_).bits_per_weight(); }

Decoder Model::decoder(int64_t context, int64_t step, int64_t sequences) const {
  Decoder::Options o{.context = context,
                     .sequences = sequences,
                     .exact = options_.exact,
                     .kv_bits = options_.kv_bits};
  if (scheme_.per_tensor) o.max_rows = std::max<int64_t>(256, step);
  return tool::make_decoder(file_, options_.backend, o);
}

std::vector<int32_t> Model::encode_text(const std::string& text) const {
  std::vector<int32_t> ids;
  if (tokenizer_->adds_bos()) ids.push_back(tokenizer_->bos());
  const auto body = tokenizer_->encode(text, false);
  ids.insert(ids.end(), body.begin(), body.end());
  return ids;
}

void check_same_vocabulary(const Model& a, const Model& b) {
  Error::Parts parts{.what = "the models have different vocabularies",
                     .where = b.path(),
                     .hint = "compare models that come from the same checkpoint"};
  const int64_t sizes[] = {a.config().vocab, a.tokenizer().vocab_size(), b.config().vocab,
                           b.tokenizer().vocab_size()};
  if (sizes[0] != sizes[2] || sizes[1] != sizes[3]) {
    parts.expected = fmt::format("{} rows and {} tokens as {} has", sizes[0], sizes[1], a.path());
    parts.found = fmt::format("{} and {}", sizes[2], sizes[3]);
    throw Error(parts);
  }
  for (int32_t id = 0; id < sizes[1]; ++id) {
    if (a.tokenizer().token_name(id) == b.tokenizer().token_name(id)) continue;
    parts.expected =
        fmt::format("'{}' as token {}, as {} has", a.tokenizer().token_name(id), id, a.path());
    parts.found = fmt::format("'{}'", b.tokenizer().token_name(id));
    throw Error(parts);
  }
}

}  // namespace oq
