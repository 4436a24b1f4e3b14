#include <memory>

#include "tools/common/cli.h"
#include "tools/common/json.h"
#include "tools/convert/convert.h"

namespace {

using namespace oq;

const std::map<std::string, Kind> kDtypes = {
    {"f16", Kind::f16}, {"bf16", Kind::bf16}, {"f32", Kind::f32}};

/// Refuses a scheme while arguments are read, so that a typing error is wrong usage.
std::string check_scheme(const std::string& text) {
  try {
    Scheme::parse(text);
    return {};
  } catch (const Error& e) {
    return e.what();
  }
}

/// Embedding and head are quantized only where the linears are.
void check_head_bits(const convert::Options& o) {
  if (o.vocab_only || o.head_bits.value_or(16) == 16) return;
  if (o.scheme ? o.scheme->quantizes_weights() : convert::is_quantized(o.source)) return;
  throw tool::usage_error("--head-bits needs a --scheme that quantizes weights");
}

void report(const convert::Options& options, const convert::Result& result, bool json, bool quiet) {
  for (const std::string& notice : result.notices) tool::notice(quiet, notice);
  if (!json) return;
  tool::print_object({{"output", options.output.string()},
                      {"family", result.family},
                      {"scheme", result.scheme.str()},
                      {"tensors", result.tensors},
                      {"weights", result.weights},
                      {"bytes", result.bytes},
                      {"notices", result.notices}});
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Converts a checkpoint (HF folder or GGUF file) into one .oq file", "oq-convert");
  convert::Options options;
  std::string scheme, dtype = "f16";
  bool json = false, quiet = false;
  app.add_option("SRC", options.source,
                 "HF folder, GGUF file, packed .pth of OWQ; a tokenizer file with --vocab-only")
      ->required();
  app.add_option("-o,--output", options.output, "the .oq file to write")->required();
  app.add_option("--scheme", scheme, "round the blocks' linears to nearest, as in w4a16g64")
      ->check(CLI::Validator(check_scheme, "SCHEME"));
  app.add_option("--head-bits", options.head_bits,
                 "bits of embedding and head: 4, 6, 8, or 16 for --dtype; 8 where --scheme rounds")
      ->check(CLI::IsMember({4, 6, 8, 16}));
  app.add_option("--dtype", dtype, "type of what is not quantized: f16, bf16 or f32")
      ->check(CLI::IsMember({"f16", "bf16", "f32"}))
      ->capture_default_str();
  app.add_flag("--vocab-only", options.vocab_only, "convert the tokenizer alone");
  tool::add_threads_flag(app, options.threads);
  tool::add_json_flag(app, json);
  tool::add_quiet_flag(app, quiet);

  return tool::run(app, argc, argv, [&] {
    if (!scheme.empty()) options.scheme = Scheme::parse(scheme);
    options.dtype = kDtypes.at(dtype);
    check_head_bits(options);
    std::unique_ptr<tool::Progress> progress;
    uint64_t shown = 0;
    const auto show = [&](uint64_t done, uint64_t total, std::string_view tensor) {
      if (!progress) {
        progress = std::make_unique<tool::Progress>("converting", double(total),
                                                    tool::Progress::Unit{"MB/s", 1e6}, quiet);
      }
      progress->advance(double(done - shown), tensor);
      shown = done;
    };
    const convert::Result result = convert::convert(options, {.progress = show});
    if (progress) progress->finish();
    report(options, result, json, quiet);
  });
}
