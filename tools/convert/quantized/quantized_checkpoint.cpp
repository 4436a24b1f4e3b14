#include "tools/convert/quantized/quantized_checkpoint.h"

#include <algorithm>
#include <unordered_set>

#include <fmt/format.h>

#include "tools/convert/quantized/awq.h"
#include "tools/convert/quantized/owq.h"

namespace oq::convert {
namespace {

/// The tensors that make up a quantized linear, of all methods.
constexpr std::string_view kParts[] = {".qweight", ".qzeros",  ".scales",    ".g_idx",
                                       ".zeros",   ".oweight", ".outlieridx"};

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() > end.size() && text.substr(text.size() - end.size()) == end;
}

/// "X" of "X.qweight"; empty for any other name.
std::string linear_of(std::string_view tensor) {
  return ends_with(tensor, kParts[0])
             ? std::string(tensor.substr(0, tensor.size() - kParts[0].size()))
             : std::string();
}

/// Nothing but zeros, signed or not: the bias that packers write for a linear that has none.
bool all_zero(const Checkpoint& checkpoint, const SourceTensor& bias) {
  if (bias.type == nullptr || bias.rows != 1) return false;
  std::vector<float> values(bias.cols);
  checkpoint.read_rows(bias, 0, 1, values.data());
  return std::all_of(values.begin(), values.end(), [](float v) { return v == 0; });
}

}  // namespace

QuantizedCheckpoint::QuantizedCheckpoint(std::unique_ptr<Checkpoint> base,
                                         Quantization quantization)
    : base_(std::move(base)), quantization_(std::move(quantization)) {
  std::unordered_set<std::string> taken;
  for (const SourceTensor& t : base_->tensors()) {
    const std::string linear = linear_of(t.name);
    if (linear.empty()) continue;
    add_linear(linear);
    for (std::string_view part : kParts) taken.insert(linear + std::string(part));
    const SourceTensor* bias = base_->find(linear + ".bias");
    if (bias == nullptr) continue;
    taken.insert(bias->name);
    SourceTensor copy = *bias;
    copy.optional = all_zero(*base_, *bias);
    add(std::move(copy), quantization_.where.string());
  }
  if (taken.empty()) {
    throw Error({.what = fmt::format("says {}, but the checkpoint holds no quantized tensor",
                                     quantization_.name()),
                 .where = quantization_.where.string(),
                 .expected = "tensors '*.qweight'",
                 .hint = "settings and tensors are of different checkpoints"});
  }
  for (const SourceTensor& t : base_->tensors()) {
    if (taken.count(t.name) == 0) add(t, quantization_.where.string());
  }
  if (ambiguous_ > 0) {
    notices_.push_back(fmt::format(
        "{} linears store a zero point as the largest code in GPTQ's first version; it is read as "
        "{}, as exllama's kernels do; other programs read 0",
        ambiguous_, 1 << quantization_.bits));
  }
}

std::vector<std::filesystem::path> QuantizedCheckpoint::files() const {
  std::vector<std::filesystem::path> files = base_->files();
  if (std::find(files.begin(), files.end(), quantization_.where) == files.end()) {
    files.push_back(quantization_.where);
  }
  return files;
}

const SourceTensor& QuantizedCheckpoint::need(const std::string& name) const {
  const SourceTensor* tensor = base_->find(name);
  if (tensor != nullptr) return *tensor;
  throw Error({.what = fmt::format("tensor '{}' is missing", name),
               .where = base_->config().where(),
               .hint = "the checkpoint is incomplete, or quantized in another way than it says"});
}

std::shared_ptr<const PackedSource> QuantizedCheckpoint::open(const std::string& name) {
  const Quantization& q = quantization_;
  const SourceTensor* qweight = &need(name + ".qweight");
  const SourceTensor* scales = &need(name + ".scales");
  switch (q.method) {
    case QuantMethod::gptq: {
      const GptqParts parts{qweight, &need(name + ".qzeros"), scales, base_->find(name + ".g_idx")};
      auto source =
          std::make_shared<GptqSource>(parts, GptqFormat{q.bits, q.group, q.symmetric, q.zeros});
      if (source->ambiguous()) ++ambiguous_;
      return source;
    }
    case QuantMethod::awq:
      return std::make_shared<AwqSource>(AwqParts{qweight, &need(name + ".qzeros"), scales},
                                         AwqFormat{q.group, q.symmetric});
    case QuantMethod::owq:
      return std::make_shared<OwqSource>(
          OwqParts{qweight, scales, &need(name + ".zeros"), base_->find(name + ".oweight"),
                   base_->find(name + ".outlieridx")},
          q.bits);
  }
  return nullptr;
}

void QuantizedCheckpoint::add_linear(const std::string& name) {
  SourceTensor whole;
  whole.name = name + ".weight";
  whole.packed = with_place(base_->config().where(), [&] { return open(name); });
  whole.rows = whole.packed->rows();
  whole.cols = whole.packed->cols();
  whole.dtype = quantization_.name();
  whole.data = need(name + ".qweight").data;
  add(std::move(whole), base_->config().where());
}

void QuantizedCheckpoint::read_rows(const SourceTensor& tensor, uint64_t row0, uint64_t n,
                                    float* out) const {
  if (tensor.packed == nullptr) return base_->read_rows(tensor, row0, n, out);
  for (uint64_t i = 0; i < n; ++i) {
    tensor.packed->dequantize_row(row0 + i, {out + i * tensor.cols, size_t(tensor.cols)});
  }
}

void QuantizedCheckpoint::release(const SourceTensor& tensor) const {
  if (tensor.packed == nullptr) return base_->release(tensor);
  const std::string name = tensor.name.substr(0, tensor.name.rfind('.'));
  for (std::string_view part : kParts) {
    const SourceTensor* t = base_->find(name + std::string(part));
    if (t != nullptr) base_->release(*t);
  }
}

}  // namespace oq::convert
