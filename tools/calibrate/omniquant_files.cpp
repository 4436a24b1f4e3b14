/// What OmniQuant's code saves (spec: docs/calibration.md, "Learned parameters"), by our names.

#include "tools/calibrate/omniquant_files.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "format/half.h"
#include "tools/calibrate/block.h"
#include "tools/tensor_files/grouped_qkv.h"
#include "tools/tensor_files/torch/file.h"

namespace oq::calibrate {
namespace {

namespace fs = std::filesystem;

struct Name {
  std::string_view theirs, ours;
};
constexpr std::string_view kFused = "qkv";  ///< Falcon's linear that is q, k and v
constexpr Name kLinears[] = {{"self_attn.q_proj", "q"},
                             {"self_attn.k_proj", "k"},
                             {"self_attn.v_proj", "v"},
                             {"self_attn.o_proj", "o"},
                             {"self_attn.out_proj", "o"},
                             {"mlp.gate_proj", "gate"},
                             {"mlp.up_proj", "up"},
                             {"mlp.down_proj", "down"},
                             {"fc1", "up"},
                             {"fc2", "down"},
                             {"self_attention.query_key_value", kFused},
                             {"self_attention.dense", "o"},
                             {"mlp.dense_h_to_4h", "up"},
                             {"mlp.dense_4h_to_h", "down"}};
constexpr Name kExpertLinears[] = {{"w1", "gate"}, {"w2", "down"}, {"w3", "up"}};
constexpr Name kBounds[] = {{".weight_quantizer.upbound_factor", ".upper"},
                            {".weight_quantizer.lowbound_factor", ".lower"}};
constexpr Name kPairs[] = {{"qkv_smooth_scale", "qkv.scale"}, {"qkv_smooth_shift", "qkv.shift"},
                           {"out_smooth_scale", "o.scale"},   {"out_smooth_shift", "o.shift"},
                           {"fc1_smooth_scale", "mlp.scale"}, {"fc1_smooth_shift", "mlp.shift"},
                           {"qkt_smooth_scale", "qk.scale"}};

template <size_t N>
const Name* find(const Name (&names)[N], std::string_view theirs) {
  const Name* it = std::find_if(std::begin(names), std::end(names),
                                [&](const Name& n) { return n.theirs == theirs; });
  return it == std::end(names) ? nullptr : it;
}

/// "self_attn.q_proj" is "q", "block_sparse_moe.experts.3.w1" "experts.3.gate"; "" where it is
/// none of ours.
std::string linear_of(std::string_view theirs) {
  if (const Name* known = find(kLinears, theirs)) return std::string(known->ours);
  constexpr std::string_view kMoe = "block_sparse_moe.";
  const size_t dot = theirs.rfind('.');
  if (theirs.substr(0, kMoe.size()) != kMoe || dot <= kMoe.size()) return {};
  const Name* known = find(kExpertLinears, theirs.substr(dot + 1));
  if (known == nullptr) return {};
  return fmt::format("{}.{}", theirs.substr(kMoe.size(), dot - kMoe.size()), known->ours);
}

/// The linears of a block, which are those of every block.
class Linears {
 public:
  /// What one linear of a file is to us: rows of it.
  struct Part {
    const TensorSpec& spec;
    std::string name;  ///< in its block
    RowMap rows;
  };
  struct Source {
    int64_t rows = 0;
    std::vector<Part> parts;  ///< none: it is not of this model
  };

  explicit Linears(const ModelConfig& c)
      : fused_{uint64_t(c.heads), uint64_t(c.kv_heads), uint64_t(c.head_dim)} {
    constexpr std::string_view kPrefix = "blocks.0.";
    for (const TensorSpec& spec : tensor_specs(c)) {
      if (spec.role != Role::linear || spec.name.rfind(kPrefix, 0) != 0) continue;
      specs_.emplace(spec.name.substr(kPrefix.size()), spec);
    }
  }

  const std::map<std::string, TensorSpec>& specs() const { return specs_; }

  /// Inputs or outputs of any of them, at most.
  int64_t widest() const {
    int64_t most = 0;
    for (const auto& entry : specs_) most = std::max({most, entry.second.rows, entry.second.cols});
    return most;
  }
  /// In a row of any of them: no group is smaller than 32.
  int64_t most_groups() const { return (widest() + 31) / 32; }

  /// `name` is of those that linear_of gives.
  Source source(const std::string& name) const {
    if (name == kFused) {
      return {int64_t(fused_.rows()),
              {{specs_.at("q"), "q", fused_.q()},
               {specs_.at("k"), "k", fused_.k()},
               {specs_.at("v"), "v", fused_.v()}}};
    }
    const auto known = specs_.find(name);
    if (known == specs_.end()) return {};
    return {known->second.rows, {{known->second, name, {}}}};
  }

 private:
  std::map<std::string, TensorSpec> specs_;
  GroupedQkv fused_;
};

template <class T>
void append(const std::vector<std::byte>& bytes, std::vector<float>& values) {
  for (size_t at = 0; at < bytes.size(); at += sizeof(T)) {
    T v;
    std::memcpy(&v, bytes.data() + at, sizeof(T));
    values.push_back(to_float(v));
  }
}

/// All of a tensor that may have so many elements: one may unfold to far more than its file holds.
std::vector<float> floats(const torch::Tensor& t, int64_t most) {
  if (t.elements() > uint64_t(most)) {
    throw Error({.what = "has more elements than a model of this shape could have",
                 .expected = fmt::format("at most {}", most),
                 .found = std::to_string(t.elements())});
  }
  std::vector<std::byte> bytes(t.elements() * t.dtype->bytes);
  t.read(0, t.elements(), bytes.data());
  std::vector<float> values;
  values.reserve(t.elements());
  if (t.dtype->name == "F16") {
    append<f16>(bytes, values);
  } else if (t.dtype->name == "BF16") {
    append<bf16>(bytes, values);
  } else if (t.dtype->name == "F32") {
    append<float>(bytes, values);
  } else {
    throw Error({.what = "is of no type of parameters",
                 .expected = "float16, bfloat16 or float32",
                 .found = std::string(t.dtype->torch)});
  }
  return values;
}

/// A scale or shift between two parts of a block.
Matrix pair_values(std::string_view name, std::vector<float> values) {
  if (name.ends_with(".scale")) {
    for (float& v : values) {
      if (v != 0 && std::fabs(v) < 0.01f) v = std::copysign(0.01f, v);
    }
  }
  const auto n = int64_t(values.size());
  return {1, n, std::move(values)};
}

/// Bounds of a file's linear, [rows * groups], become those of ours, [rows][groups]. A fused linear
/// is quantized row by row as others are, so that its parts have theirs.
void add_bounds(const Linears::Source& source, std::string_view bound, const Matrix& all,
                BlockParameters& block) {
  for (const Linears::Part& part : source.parts) {
    Matrix own(part.spec.rows, all.cols());
    for (int64_t r = 0; r < own.rows(); ++r) {
      const auto from = all.row(int64_t(part.rows(uint64_t(r))));
      std::copy(from.begin(), from.end(), own.row(r).begin());
    }
    block.insert_or_assign(part.name + std::string(bound), std::move(own));
  }
}

/// One of a file's tensors, by our names.
void add_parameter(std::string_view theirs, const torch::Tensor& tensor, const Linears& linears,
                   BlockParameters& block) {
  if (const Name* pair = find(kPairs, theirs)) {
    block.insert_or_assign(std::string(pair->ours),
                           pair_values(pair->ours, floats(tensor, linears.widest())));
    return;
  }
  for (const Name& bound : kBounds) {
    if (!theirs.ends_with(bound.theirs)) continue;
    const Linears::Source source =
        linears.source(linear_of(theirs.substr(0, theirs.size() - bound.theirs.size())));
    if (source.parts.empty()) break;
    std::vector<float> values = floats(tensor, source.rows * linears.most_groups());
    const auto n = int64_t(values.size());
    if (n == 0 || n % source.rows != 0) {
      throw Error({.what = "has no whole number of groups in a row",
                   .expected = fmt::format("a multiple of {} rows", source.rows),
                   .found = std::to_string(n)});
    }
    const Matrix all(source.rows, n / source.rows, std::move(values));
    return add_bounds(source, bound.ours, all, block);
  }
  throw Error({.what = "is not a parameter of this model",
               .hint = "files of LLaMA, OPT, Falcon and Mixtral are read"});
}

const torch::Tensor& tensor_of(const torch::Value& value) {
  const auto* tensor = value.as<torch::Tensor>();
  if (tensor == nullptr) {
    throw Error({.what = "is no tensor", .found = std::string(value.kind())});
  }
  return *tensor;
}

std::string text_of(const torch::Value& key) {
  const auto* name = key.as<std::string_view>();
  return name != nullptr ? std::string(*name) : std::string();
}

/// "model.layers.3.self_attn.q_proj" and Falcon's "transformer.h.3...." are linears of block 3; -1
/// where it is no linear of a block.
struct LinearPlace {
  int64_t block = -1;
  std::string name;
};
LinearPlace place_of(const std::string& theirs) {
  for (const std::string_view list : {"layers.", "transformer.h."}) {
    const size_t at = theirs.find(list);
    if (at == std::string::npos) continue;
    const std::string rest = theirs.substr(at + list.size());
    const size_t dot = rest.find('.');
    if (dot == std::string::npos || dot == 0 || dot > 6) return {};
    if (!std::all_of(rest.begin(), rest.begin() + ptrdiff_t(dot),
                     [](char c) { return c >= '0' && c <= '9'; })) {
      return {};
    }
    return {std::stoll(rest.substr(0, dot)), linear_of(rest.substr(dot + 1))};
  }
  return {};
}

/// Throws unless every linear of every block has a value for each of its inputs.
void check_ranges(const fs::path& path, const char* suffix, const Linears& linears,
                  const std::vector<BlockParameters>& blocks) {
  for (size_t b = 0; b < blocks.size(); ++b) {
    for (const auto& [name, spec] : linears.specs()) {
      const auto found = blocks[b].find(name + suffix);
      if (found != blocks[b].end() && found->second.cols() == spec.cols) continue;
      throw Error(
          {.what = "has no such range for every input of a linear",
           .where = fmt::format("{}, blocks.{}.{}", path.string(), b, name),
           .expected = std::to_string(spec.cols),
           .found = found == blocks[b].end() ? "none" : std::to_string(found->second.cols()),
           .hint = "it is of another model"});
    }
  }
}

/// Vectors of one file, "q.largest" or "q.middle", into blocks.
void add_ranges(const fs::path& path, const char* suffix, const Linears& linears,
                std::vector<BlockParameters>& blocks) {
  const torch::File file(path);
  for (const auto& [key, value] : file.dict().items()) {
    const std::string theirs = text_of(key);
    const LinearPlace place = place_of(theirs);
    if (place.name.empty()) continue;  // embedding's, head's
    with_place(fmt::format("{}, '{}'", path.string(), theirs), [&, &value = value] {
      if (place.block >= int64_t(blocks.size())) {
        throw Error({.what = "is of no block of this model",
                     .expected = fmt::format("less than {} blocks", blocks.size())});
      }
      std::vector<float> v = floats(tensor_of(value), linears.widest());
      const auto n = int64_t(v.size());
      Matrix m(1, n, std::move(v));
      check_finite(m, theirs);
      // All parts of a fused linear read its input.
      for (const Linears::Part& part : linears.source(place.name).parts) {
        blocks[size_t(place.block)].insert_or_assign(part.name + suffix, m);
      }
    });
  }
  check_ranges(path, suffix, linears, blocks);
}

}  // namespace

std::vector<BlockParameters> read_omniquant_parameters(const fs::path& path,
                                                       const ModelConfig& config) {
  const torch::File file(path);
  const Linears linears(config);
  std::vector<BlockParameters> blocks(static_cast<size_t>(config.blocks));
  for (const auto& [key, value] : file.dict().items()) {
    const auto* index = key.as<int64_t>();
    const auto* tensors = value.as<torch::Dict>();
    if (index == nullptr || tensors == nullptr || *index < 0 || *index >= config.blocks) {
      throw Error(
          {.what = "is no file of OmniQuant's parameters for this model",
           .where = path.string(),
           .expected = fmt::format("a dict of tensors for each of {} blocks", config.blocks),
           .found = index != nullptr ? fmt::format("block {}", *index) : "'" + text_of(key) + "'"});
    }
    for (const auto& [name, tensor] : tensors->items()) {
      const std::string theirs = text_of(name);
      with_place(fmt::format("{}, block {}, '{}'", path.string(), *index, theirs),
                 [&, &tensor = tensor] {
                   add_parameter(theirs, tensor_of(tensor), linears, blocks[size_t(*index)]);
                 });
    }
  }
  return blocks;
}

std::vector<BlockParameters> read_input_ranges(const fs::path& scales, const fs::path& shifts,
                                               const ModelConfig& config) {
  const Linears linears(config);
  std::vector<BlockParameters> blocks(static_cast<size_t>(config.blocks));
  add_ranges(scales, ".largest", linears, blocks);
  if (!shifts.empty()) add_ranges(shifts, ".middle", linears, blocks);
  return blocks;
}

}  // namespace oq::calibrate
