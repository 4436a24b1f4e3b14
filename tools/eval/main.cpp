#include <fmt/format.h>

#include "runtime/tokenizer/tokenizer.h"
#include "tools/common/backend.h"
#include "tools/common/json.h"
#include "tools/common/text_file.h"
#include "tools/eval/perplexity.h"

namespace {

using namespace oq;

struct Options {
  std::vector<std::string> models;
  std::string text, join, backend = "auto";
  int64_t window = 2048, max_windows = 0;
  int threads = 0;
  bool exact = false, json = false, quiet = false;
};

struct Row {
  std::string model, scheme;
  double bits_per_weight;
  Perplexity result;
};

std::vector<int32_t> ids_of(const std::string& text, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  if (tokenizer.adds_bos()) ids.push_back(tokenizer.bos());
  const auto body = tokenizer.encode(text, false);
  ids.insert(ids.end(), body.begin(), body.end());
  return ids;
}

Row evaluate(const Options& o, const std::shared_ptr<const File>& file, const std::string& text) {
  const std::string model = file->path().string();
  const auto tokenizer = Tokenizer::load(*file);
  Decoder decoder(file, tool::make_backend(o.backend, o.threads),
                  {.context = o.window, .exact = o.exact});
  const auto ids = ids_of(text, *tokenizer);
  int64_t windows = int64_t(ids.size()) / o.window;
  if (o.max_windows > 0) windows = std::min(windows, o.max_windows);
  tool::Progress progress(model, double(windows * (o.window - 1)), {"tokens/s", 1}, o.quiet);
  Row row{.model = model,
          .scheme = file->metadata().get_or<std::string>("scheme", "w16a16"),
          .bits_per_weight = linear_bytes(*file, decoder.config()).bits_per_weight(),
          .result = with_place(model + " on " + o.text, [&] {
            return measure_perplexity(decoder, ids, o.window, o.max_windows,
                                      [&](int64_t n) { progress.advance(double(n)); });
          })};
  progress.finish();
  return row;
}

void print_head() {
  tool::print(
      "| model | scheme | bits/weight | perplexity | +- | windows | tokens |\n"
      "|---|---|---|---|---|---|---|\n");
}

void print_row(const Row& r) {
  tool::print(fmt::format("| {} | {} | {:.3f} | {:.4f} | {:.4f} | {} | {} |\n", r.model, r.scheme,
                          r.bits_per_weight, r.result.perplexity, r.result.standard_error,
                          r.result.windows, r.result.tokens));
}

void print_json(const Options& o, const std::vector<Row>& rows) {
  nlohmann::json list = nlohmann::json::array();
  for (const Row& r : rows) {
    list.push_back({{"model", r.model},
                    {"scheme", r.scheme},
                    {"bits_per_weight", r.bits_per_weight},
                    {"perplexity", r.result.perplexity},
                    {"standard_error", r.result.standard_error},
                    {"windows", r.result.windows},
                    {"tokens", r.result.tokens},
                    {"window_nll", r.result.window_nll}});
  }
  tool::print_object({{"text", o.text}, {"window", o.window}, {"results", list}});
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Measures how well models predict a text", "oq-eval");
  Options o;
  app.add_option("MODEL", o.models, ".oq files, one row each")->required();
  app.add_option("--perplexity", o.text, "text file to measure perplexity on")->required();
  app.add_option("--window", o.window, "tokens per window")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  app.add_option("--max-windows", o.max_windows, "stop after N windows (0: all)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--join", o.join, "hf: join the text's lines as the papers do for WikiText")
      ->check(CLI::IsMember({"hf"}));
  app.add_flag("--exact", o.exact, "fp32 activations and KV cache");
  tool::add_backend_flag(app, o.backend);
  tool::add_threads_flag(app, o.threads);
  tool::add_json_flag(app, o.json);
  tool::add_quiet_flag(app, o.quiet);

  return tool::run(app, argc, argv, [&] {
    std::string text = tool::read_text(o.text);  // once: it may be a pipe
    if (o.join == "hf") text = join_like_hf(text);
    std::vector<std::shared_ptr<const File>> files;  // all of them, before hours go into the first
    for (const std::string& model : o.models) files.push_back(File::open(model));
    std::vector<Row> rows;
    for (const auto& file : files) {
      rows.push_back(evaluate(o, file, text));
      if (o.json) continue;
      if (rows.size() == 1) print_head();
      print_row(rows.back());
    }
    if (o.json) print_json(o, rows);
  });
}
