#include "tools/calibrate/work_folder.h"

#include <cmath>

#include <fmt/format.h>

namespace oq::calibrate {
namespace {

namespace fs = std::filesystem;

constexpr const char* kKey = "calibration.key";
constexpr const char* kLearned = "learned.";  ///< goes before a parameter's name

/// Floats in a file's type; throws where one does not fit.
std::vector<std::byte> encode(std::span<const float> values, Kind kind) {
  std::vector<std::byte> out;
  const auto put = [&](auto value, float from) {
    if (!std::isfinite(to_float(value))) {
      throw Error({.what = fmt::format("a value does not fit {}", to_string(kind)),
                   .found = fmt::format("{}", from),
                   .hint = "convert the checkpoint with --dtype bf16 or f32"});
    }
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    out.insert(out.end(), bytes, bytes + sizeof(value));
  };
  for (float v : values) {
    if (kind == Kind::f16) {
      put(to_f16(v), v);
    } else if (kind == Kind::bf16) {
      put(to_bf16(v), v);
    } else {
      put(v, v);
    }
  }
  return out;
}

/// The job's value of the tensor `name` of its block, which is not packed.
std::span<const float> plain_values(BlockJob& job, const std::string& name) {
  BlockWeights& w = job.weights();
  if (name == "attn_norm") return w.attn_norm.weight;
  if (name == "attn_norm.bias") return w.attn_norm.bias;
  if (name == "mlp_norm") return w.mlp_norm.weight;
  if (name == "mlp_norm.bias") return w.mlp_norm.bias;
  if (name == "router") return w.router;
  if (name.ends_with(".bias")) return w.linears.at(name.substr(0, name.size() - 5)).bias;
  return w.linears.at(name).weight.values();
}

void store_reports(const BlockJob& job, Metadata& m) {
  std::vector<std::string> names;
  std::vector<double> numbers;
  for (const auto& [name, done] : job.done()) {
    const LinearReport& r = done.report;
    names.push_back(r.name);
    for (double v : {r.output_error, r.weight_error, r.bits, double(r.weak_columns), r.damp}) {
      numbers.push_back(v);
    }
  }
  m.set("report.names", std::move(names));
  m.set("report.numbers", std::move(numbers));
  if (!job.losses().empty()) m.set("report.losses", job.losses());
  if (job.output_error()) m.set("report.output_error", *job.output_error());
}

}  // namespace

WorkFolder::WorkFolder(const fs::path& output, std::string key, bool resume)
    : path_(output.string() + ".work"), key_(std::move(key)) {
  std::error_code failed;
  fs::create_directories(path_, failed);
  if (failed) {
    throw Error({.what = "cannot be made", .where = path_.string(), .found = failed.message()});
  }
  for (int64_t i = 0; fs::exists(file_of(i)); ++i) {
    if (!resume) {
      fs::remove(file_of(i));
      continue;
    }
    const auto found = File::open(file_of(i))->metadata().get_or<std::string>(kKey, "");
    if (found != key_) {
      throw Error(
          {.what = "was made with other options, by another build, or from another model or text",
           .where = file_of(i).string(),
           .expected = key_,
           .found = found,
           .hint = "use the program and the options of the run that was stopped, or leave out "
                   "--resume"});
    }
    finished_ = i + 1;
  }
}

fs::path WorkFolder::file_of(int64_t index) const {
  return path_ / fmt::format("block-{:04}.oq", index);
}

std::shared_ptr<const File> WorkFolder::block(int64_t index) const {
  return File::open(file_of(index));
}

void WorkFolder::write(int64_t index, BlockJob& job, const File& source) {
  const std::string prefix = fmt::format("blocks.{}.", index);
  const auto specs = tensor_specs(job.config());
  Metadata metadata;
  metadata.set(kKey, key_);
  store_reports(job, metadata);
  Writer out(file_of(index), specs.size() + job.parameters().size(),
             metadata.encode().size());  // a block may have thousands of linears
  out.metadata = std::move(metadata);
  for (const TensorSpec& spec : specs) {
    if (spec.name.rfind(prefix, 0) != 0) continue;
    const std::string name = spec.name.substr(prefix.size());
    const auto done = job.done().find(name);
    TensorInfo info{.name = spec.name, .rows = uint64_t(spec.rows), .cols = uint64_t(spec.cols)};
    with_place(spec.name, [&] {
      if (done != job.done().end()) {
        info.kind = Kind::packed;
        info.packing = done->second.linear.packing;
        out.add(info, done->second.linear.pack().bytes());
      } else {
        info.kind = spec.role == Role::f32 ? Kind::f32 : source.tensor(spec.name).kind;
        out.add(info, encode(plain_values(job, name), info.kind));
      }
    });
  }
  for (const auto& [name, m] : job.parameters()) {
    out.add({.name = kLearned + name,
             .kind = Kind::f32,
             .rows = uint64_t(m.rows()),
             .cols = uint64_t(m.cols())},
            std::as_bytes(m.values()));
  }
  out.finish();
  finished_ = index + 1;
}

std::vector<LinearReport> WorkFolder::reports(int64_t index) const {
  const auto file = block(index);
  const auto& names = file->metadata().get<std::vector<std::string>>("report.names");
  const auto& numbers = file->metadata().get<std::vector<double>>("report.numbers");
  std::vector<LinearReport> reports;
  for (size_t i = 0; i < names.size() && 5 * i + 4 < numbers.size(); ++i) {
    const TensorInfo& info = file->tensor(names[i]);
    reports.push_back({.name = names[i],
                       .output_error = numbers[5 * i],
                       .weight_error = numbers[5 * i + 1],
                       .bits = 8.0 * double(info.bytes) / double(info.elements()),
                       .weak_columns = int64_t(numbers[5 * i + 3]),
                       .damp = numbers[5 * i + 4]});
  }
  return reports;
}

BlockParameters WorkFolder::parameters(int64_t index) const {
  const auto file = block(index);
  BlockParameters parameters;
  for (const TensorInfo& t : file->tensors()) {
    if (t.name.rfind(kLearned, 0) != 0) continue;
    parameters.emplace(t.name.substr(std::string_view(kLearned).size()),
                       Matrix(int64_t(t.rows), int64_t(t.cols), read_tensor(*file, t.name)));
  }
  return parameters;
}

void WorkFolder::remove() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

BlockWeights load_finished(const File& file, const ModelConfig& config, const Scheme& scheme,
                           int64_t block) {
  BlockWeights w = BlockWeights::load(file, config, block);
  for (auto& [name, l] : w.linears) {
    const TensorInfo& info = file.tensor(fmt::format("blocks.{}.{}", block, name));
    l.input_bits = scheme.activation_bits;
    if (info.kind != Kind::packed) continue;
    const auto weak = file.packed(info).weak_indices();
    l.weak.assign(weak.begin(), weak.end());
  }
  return w;
}

}  // namespace oq::calibrate
