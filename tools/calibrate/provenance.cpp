#include "tools/calibrate/provenance.h"

#include <charconv>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "format/crc32c.h"
#include "tools/tensor_files/mapped_file.h"

namespace oq::calibrate {
namespace {

/// Of the tokenizer's tensors alone, which are bytes.
uint32_t tokenizer_checksum(const File& file) {
  uint32_t crc = 0;
  for (const TensorInfo& t : file.tensors()) {
    if (t.kind == Kind::bytes) crc = crc32c(std::as_bytes(std::span(&t.crc, 1)), crc);
  }
  return crc;
}

uint32_t crc_of(const std::filesystem::path& path) {
  return path.empty() ? 0 : crc32c(MappedFile(path).bytes());
}

/// Of the program that runs; 0 where the system does not say which.
uint32_t build_checksum() {
  static const uint32_t crc = [] {
    const std::filesystem::path self = "/proc/self/exe";
    return std::filesystem::exists(self) ? crc_of(self) : 0;
  }();
  return crc;
}

}  // namespace

Provenance provenance_of(const Options& o, const File& model, const CalibrationText& text) {
  const auto source = model.metadata().get_or<std::vector<std::string>>("source.sha256", {});
  return {{"options", applied_options(o)},
          {"training", training_options(o)},
          {"text", text.source},
          {"text_crc32c", fmt::format("{:08x}", text.crc)},
          {"seed", std::to_string(o.seed)},
          {"model_crc32c", fmt::format("{:08x}", model.checksum())},
          {"tokenizer_crc32c", fmt::format("{:08x}", tokenizer_checksum(model))},
          {"source_sha256", fmt::format("{}", fmt::join(source, " "))},
          {"tool", "oq-calibrate " OQ_VERSION}};
}

void take_training(Provenance& own, const Parameters& given, const std::filesystem::path& path) {
  if (given.metadata.empty()) {  // OmniQuant's, which says nothing
    own["training"] = "--params " + path.filename().string();
    return;
  }
  const auto value = [&](const char* what) {
    const auto found = given.metadata.find(what);
    if (found != given.metadata.end()) return found->second;
    throw Error({.what = fmt::format("has no '{}' in its metadata", what),
                 .where = path.string(),
                 .hint = "make it again with --save-params"});
  };
  constexpr std::pair<const char*, const char*> kSame[] = {
      {"model_crc32c", "was learned from another model"},
      {"tokenizer_crc32c", "was learned with another tokenizer"},
      {"options", "was learned with other options"}};
  for (const auto& [what, complaint] : kSame) {
    if (value(what) == own.at(what)) continue;
    throw Error({.what = complaint,
                 .where = path.string(),
                 .expected = own.at(what),
                 .found = value(what),
                 .hint = "give the model and the flags that it was learned with"});
  }
  for (const char* what : {"training", "text", "text_crc32c", "seed"}) own[what] = value(what);
  if (std::to_string(seed_of(own)) != own.at("seed")) {
    throw Error({.what = "has a seed that is no number",
                 .where = path.string(),
                 .found = "'" + own.at("seed") + "'"});
  }
}

uint64_t seed_of(const Provenance& p) {
  const std::string& text = p.at("seed");
  uint64_t seed = 0;
  std::from_chars(text.data(), text.data() + text.size(), seed);
  return seed;
}

std::string options_text(const Provenance& p, const Options& o) {
  return fmt::format("{} --head-bits {} {}", p.at("options"), o.head_bits, p.at("training"));
}

std::string run_key(const Provenance& p, const Options& o) {
  return fmt::format("{}; model {}; text {}; files {:08x} {:08x} {:08x}; {}, build {:08x}",
                     options_text(p, o), p.at("model_crc32c"), p.at("text_crc32c"),
                     crc_of(o.parameters), crc_of(o.act_scales), crc_of(o.act_shifts), p.at("tool"),
                     build_checksum());
}

}  // namespace oq::calibrate
