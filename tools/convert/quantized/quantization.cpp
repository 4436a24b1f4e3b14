#include "tools/convert/quantized/quantization.h"

#include <algorithm>
#include <cstdio>

#include <fmt/format.h>

#include "tools/convert/json.h"

namespace oq::convert {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

/// The settings, under whichever of the names that the tools gave them over time.
class Settings {
 public:
  Settings(json root, fs::path file)
      : config_(root, file.string()), root_(std::move(root)), file_(std::move(file)) {}

  const fs::path& file() const { return file_; }
  const JsonConfig& values() const { return config_; }

  /// The first of the names that there is, or the first.
  const char* key(std::initializer_list<const char*> names) const {
    const auto there = std::find_if(names.begin(), names.end(),
                                    [&](const char* name) { return config_.contains(name); });
    return there != names.end() ? *there : *names.begin();
  }
  /// In lower case; empty where there is none.
  std::string word(std::initializer_list<const char*> names) const {
    std::string text = config_.text_or(key(names), "");
    for (char& c : text) c = c >= 'A' && c <= 'Z' ? char(c - 'A' + 'a') : c;
    return text;
  }
  int64_t integer(std::initializer_list<const char*> names) const {
    return config_.integer(key(names));
  }
  bool has_members(const char* name) const {
    const auto it = root_.find(name);
    return it != root_.end() && it->is_structured() && !it->empty();
  }

  /// "meta": {"quantizer": ["gptqmodel:1.8.0"]}, or the same without the list.
  std::string producer() const {
    const auto meta = root_.find("meta");
    if (meta == root_.end() || !meta->is_object()) return {};
    auto tool = meta->find("quantizer");
    if (tool == meta->end()) return {};
    const json& first = tool->is_array() && !tool->empty() ? tool->front() : *tool;
    return first.is_string() ? first.get<std::string>() : "";
  }

  [[noreturn]] void refuse(std::string what, std::string expected, std::string found,
                           std::string hint) const {
    throw Error({.what = std::move(what),
                 .where = file_.string(),
                 .expected = std::move(expected),
                 .found = std::move(found),
                 .hint = std::move(hint)});
  }

 private:
  JsonConfig config_;
  json root_;
  fs::path file_;
};

constexpr const char* kOthers =
    "give a checkpoint of GPTQ (gptq or gptq_v2), AWQ (gemm) or OWQ, or one that is not quantized";

std::optional<Settings> find_settings(const Checkpoint& checkpoint) {
  if (checkpoint.dialect() != Dialect::hf) return std::nullopt;
  const fs::path config = checkpoint.config().where();
  if (checkpoint.config().has_group("quantization_config")) {
    return Settings(read_json(config)["quantization_config"], config);
  }
  for (const char* name : {"quantize_config.json", "quant_config.json"}) {
    const fs::path beside = config.parent_path() / name;
    if (!fs::exists(beside)) continue;
    return Settings(read_json_object(beside), beside);
  }
  return std::nullopt;
}

void read_group(const Settings& s, Quantization& q) {
  const int64_t group = s.integer({"group_size", "q_group_size"});
  if (group != -1 && (group < 1 || group > (int64_t(1) << 31))) {
    s.refuse("setting 'group_size' is out of range", "-1 or a number of columns",
             std::to_string(group), "the checkpoint is damaged");
  }
  q.group = group == -1 ? 0 : group;
}

void read_bits(const Settings& s, std::initializer_list<int64_t> known, Quantization& q) {
  const int64_t bits = s.integer({"bits", "w_bit", "wbits"});
  if (std::find(known.begin(), known.end(), bits) == known.end()) {
    s.refuse(fmt::format("is quantized by {} to a width that cannot be taken over", q.name()),
             q.method == QuantMethod::awq ? "4 bits" : "2, 3, 4 or 8 bits", std::to_string(bits),
             kOthers);
  }
  q.bits = uint32_t(bits);
}

/// What all methods share, and may have in a way that cannot be taken over.
void refuse_variants(const Settings& s) {
  if (s.has_members("dynamic")) {
    s.refuse("gives modules settings of their own ('dynamic')", "", "",
             "such a checkpoint cannot be taken over");
  }
  const std::string words = s.values().text_or("pack_dtype", "int32");
  if (words != "int32") {
    s.refuse("packs codes into other words than usual", "pack_dtype int32", words, kOthers);
  }
  if (s.values().flag_or("is_marlin_format", false)) {
    s.refuse("is repacked for the Marlin kernels", "checkpoint_format gptq or gptq_v2", "marlin",
             kOthers);
  }
}

/// GPTQModel below 6.1 shifted the 3-bit zero points of version 1 by a wrong constant.
bool shifts_3_bits(const std::string& producer) {
  int major = 0, minor = 0;
  return std::sscanf(producer.c_str(), "gptqmodel:%d.%d", &major, &minor) == 2 &&
         (major < 6 || (major == 6 && minor < 1));
}

void read_gptq(const Settings& s, Quantization& q) {
  const std::string format = s.word({"checkpoint_format", "format"});
  if (!format.empty() && format != "gptq" && format != "gptq_v2") {
    s.refuse("is GPTQ in a packed layout that cannot be taken over",
             "checkpoint_format gptq or gptq_v2", format, kOthers);
  }
  read_bits(s, {2, 3, 4, 8}, q);
  q.symmetric = s.values().flag_or("sym", false);
  if (format == "gptq_v2") {
    q.zeros = GptqZeros::stored;
  } else if (q.producer.rfind("gptqmodel", 0) == 0) {
    q.zeros = GptqZeros::minus_one_words;
  } else {
    q.zeros = GptqZeros::minus_one;
  }
  if (q.zeros == GptqZeros::minus_one_words && q.bits == 3 && shifts_3_bits(q.producer)) {
    s.refuse("holds 3-bit zero points that GPTQModel below 6.1 stored wrongly",
             "checkpoint_format gptq_v2, or a newer GPTQModel", q.producer,
             "save the checkpoint again with a newer GPTQModel");
  }
}

void read_awq(const Settings& s, Quantization& q) {
  const std::string version = s.word({"version", "checkpoint_format", "format"});
  const std::string backend = s.word({"backend"});
  if ((!version.empty() && version != "gemm") || backend == "llm-awq") {
    s.refuse("is AWQ in a packed layout that cannot be taken over", "version gemm",
             backend == "llm-awq" ? backend : version, kOthers);
  }
  read_bits(s, {4}, q);
  q.symmetric = !s.values().flag_or("zero_point", true);
}

QuantMethod read_method(const Settings& s) {
  const std::string method = s.word({"quant_method", "method"});
  if (method == "gptq") return QuantMethod::gptq;
  if (method == "awq") return QuantMethod::awq;
  if (method.empty() && s.values().contains("w_bit")) return QuantMethod::awq;
  if (method.empty() && s.values().contains("bits") && s.values().contains("group_size")) {
    return QuantMethod::gptq;  // what AutoGPTQ wrote before there were other methods
  }
  s.refuse("is quantized by a method that cannot be taken over", "gptq or awq",
           method.empty() ? "no quant_method" : "'" + method + "'", kOthers);
}

}  // namespace

std::string Quantization::name() const {
  switch (method) {
    case QuantMethod::gptq:
      return zeros == GptqZeros::stored ? "gptq_v2" : "gptq";
    case QuantMethod::awq:
      return "awq";
    case QuantMethod::owq:
      return "owq";
  }
  return {};
}

Scheme Quantization::scheme() const {
  Scheme s;
  s.weight_bits = int(bits);
  s.symmetric = symmetric;
  // Other groups are those of a whole row: all tensors are held to that.
  s.group = group % kBlockCols == 0 ? uint32_t(group) : 0;
  return s;
}

std::optional<Quantization> read_quantization(const Checkpoint& checkpoint) {
  const auto settings = find_settings(checkpoint);
  if (!settings) return std::nullopt;
  Quantization q;
  q.method = read_method(*settings);
  q.producer = settings->producer();
  q.where = settings->file();
  refuse_variants(*settings);
  read_group(*settings, q);
  if (q.method == QuantMethod::gptq) {
    read_gptq(*settings, q);
  } else {
    read_awq(*settings, q);
  }
  return q;
}

}  // namespace oq::convert
