#include "tools/convert/families.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "tools/convert/families/families.h"
#include "tools/convert/families/reading.h"
#include "tools/convert/tensor_names.h"

namespace oq::convert {
namespace {

using GetFamily = const Family& (*)();
constexpr GetFamily kFamilies[] = {llama_family,  mistral_family, mixtral_family, qwen2_family,
                                   falcon_family, opt_family,     bloom_family};

/// Same shape and same weights.
bool equal(const Checkpoint& c, const SourceTensor& a, const SourceTensor& b) {
  if (a.rows != b.rows || a.cols != b.cols) return false;
  const uint64_t chunk = std::max<uint64_t>(1, (1 << 18) / std::max<uint64_t>(1, a.cols));
  std::vector<float> left, right;
  for (uint64_t row = 0; row < a.rows; row += chunk) {
    const uint64_t n = std::min(chunk, a.rows - row);
    left.resize(n * a.cols), right.resize(n * a.cols);
    c.read_rows(a, row, n, left.data());
    c.read_rows(b, row, n, right.data());
    if (left != right) return false;
  }
  return true;
}

/// A head that is called the embedding, and yet is there, is the embedding only if it equals it.
/// (GGUF does not say; some config.json speak of tied weights where they are not.)
void settle_head(const Family& family, const Checkpoint& c, Model& model) {
  if (!model.config.tied_head) return;
  const Source head = find_source(family, c, "head");
  const Source embedding = find_source(family, c, "embedding");
  if (head.tensor == nullptr || embedding.tensor == nullptr) return;
  if (equal(c, *head.tensor, *embedding.tensor)) return;
  model.config.tied_head = false;
  if (c.dialect() == Dialect::hf) {
    model.notices.push_back("the settings call the head the embedding, but '" + head.name +
                            "' holds other weights: these are the head");
  }
}

}  // namespace

void Model::compute(std::string_view tensor, uint64_t row, std::span<float> out) const {
  if (tensor == "alibi") return alibi.row(row, out);
  std::copy_n(rope.inv_freq.begin(), out.size(), out.begin());
}

const Family& find_family(const Checkpoint& checkpoint) {
  const std::string name = checkpoint.architecture();
  std::vector<std::string_view> known;
  for (const GetFamily get : kFamilies) {
    const Family& family = get();
    const auto& names =
        checkpoint.dialect() == Dialect::hf ? family.hf_model_types : family.gguf_architectures;
    if (std::find(names.begin(), names.end(), name) != names.end()) return family;
    known.insert(known.end(), names.begin(), names.end());
  }
  throw Error({.what = "is of a model family that cannot be converted",
               .where = checkpoint.config().where(),
               .expected = fmt::format("{}", fmt::join(known, ", ")),
               .found = "'" + name + "'"});
}

Model read_model(const Family& family, const Checkpoint& checkpoint) {
  const bool hf = checkpoint.dialect() == Dialect::hf;
  Model model = hf ? family.from_hf(checkpoint) : family.from_gguf(checkpoint);
  settle_head(family, checkpoint, model);
  if (!model.rope.notice.empty()) model.notices.push_back(model.rope.notice);
  if (model.rope.context_limit > 0) model.config.context = model.rope.context_limit;
  model.config.rope_attention_factor = model.rope.attention_factor;
  return model;
}

}  // namespace oq::convert
