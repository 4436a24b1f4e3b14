#include <fmt/format.h>
#include <fmt/ranges.h>

#include "format/scheme.h"
#include "runtime/chat.h"
#include "runtime/config.h"
#include "runtime/tokenizer/tokenizer_data.h"
#include "tools/common/json.h"
#include "tools/common/text_file.h"

namespace {

using namespace oq;

struct Options {
  std::string model, tokenize;
  std::vector<std::string> set;
  bool verify = false, tensors = false, json = false, quiet = false;
};

std::string packing_text(const TensorInfo& t) {
  if (t.kind != Kind::packed) return std::string(to_string(t.kind));
  const Packing& p = t.packing;
  std::string s = fmt::format("w{}{}", p.bits, p.five_levels ? "*" : "");
  if (p.group != 0) s += fmt::format(" g{}", p.group);
  if (p.zero_mode == ZeroMode::constant) s += fmt::format(" zero {}", p.zero);
  if (p.zero_mode == ZeroMode::i16) s += " zero i16";
  if (p.weak_columns != 0) s += fmt::format(" {} weak columns", p.weak_columns);
  return s;
}

/// "key=value" into the metadata, with the type that the key has now. A chat template may also be
/// given to a model that came without one.
void set_value(Metadata& metadata, const std::string& assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0) {
    throw tool::usage_error("--set wants key=value, not '" + assignment + "'");
  }
  const std::string key = assignment.substr(0, equals);
  const Metadata::Value no_template = std::string();
  const Metadata::Value* old = metadata.find(key);
  if (old == nullptr && key == "chat.template") old = &no_template;
  if (old == nullptr) {
    throw Error({.what = "there is no such metadata key",
                 .where = "--set " + key,
                 .hint = "oq-info without flags lists the keys"});
  }
  if (std::holds_alternative<std::vector<std::string>>(*old)) {
    throw Error({.what = "lists of texts are not edited: a comma in one would split it",
                 .where = "--set " + key,
                 .hint = "convert the checkpoint again"});
  }
  with_place("--set " + key,
             [&] { metadata.set(key, Metadata::from_text(assignment.substr(equals + 1), *old)); });
}

/// Refuses an edit after which the file's model or tokenizer would no longer load, or its chat
/// template is none that OQ knows.
void check_edit(const File& file, const Metadata& metadata) {
  const auto chat = metadata.get_or<std::string>("chat.template", "");
  if (chat != file.metadata().get_or<std::string>("chat.template", "")) ChatTemplate::named(chat);
  if (metadata.contains("model.family")) check_tensors(file, ModelConfig::load(metadata));
  Scheme::load(metadata);
  if (!metadata.contains("model.vocab")) return;
  std::vector<int64_t> ids =
      metadata.get_or<std::vector<int64_t>>("tokenizer.stop_ids", std::vector<int64_t>());
  ids.push_back(std::max<int64_t>(0, metadata.get_or<int64_t>("tokenizer.bos", -1)));
  for (int64_t id : ids) {
    if (id >= 0 && id < metadata.get<int64_t>("model.vocab")) continue;
    throw Error({.what = "there is no such token",
                 .expected = fmt::format("ids below {}", metadata.get<int64_t>("model.vocab")),
                 .found = std::to_string(id)});
  }
}

/// The same for the tokenizer, whose vocabulary may be smaller than the model's.
void check_tokenizer(const File& file, const Metadata& metadata, const std::string& place) {
  TokenizerData data = TokenizerData::load(file, metadata);
  if (data.kind != TokenizerData::Kind::none) make_tokenizer(std::move(data), place);
}

nlohmann::json json_value(const Metadata::Value& value) {
  return std::visit([](const auto& v) { return nlohmann::json(v); }, value);
}

void print_json(const File& file) {
  nlohmann::json metadata = nlohmann::json::object(), tensors = nlohmann::json::array();
  for (const auto& [key, value] : file.metadata()) metadata[key] = json_value(value);
  for (const TensorInfo& t : file.tensors()) {
    tensors.push_back({{"name", t.name},
                       {"type", packing_text(t)},
                       {"rows", t.rows},
                       {"cols", t.cols},
                       {"bytes", t.bytes}});
  }
  tool::print_object({{"file", file.path().string()},
                      {"bytes", file.bytes()},
                      {"metadata", metadata},
                      {"tensors", tensors}});
}

void print_summary(const File& file, bool tensors) {
  tool::print(fmt::format("{}: {:.1f} MB, {} tensors\n", file.path().string(),
                          double(file.bytes()) / 1e6, file.tensors().size()));
  if (file.metadata().contains("model.family")) {
    const LinearBytes linear = linear_bytes(file, ModelConfig::load(file));
    tool::print(fmt::format("blocks' linears: {:.1f} M weights at {:.3f} bits per weight\n",
                            double(linear.weights) / 1e6, linear.bits_per_weight()));
  }
  for (const auto& [key, value] : file.metadata()) {
    std::string text = Metadata::to_text(value);
    if (text.size() > 200) text = text.substr(0, 200) + "...";
    tool::print(fmt::format(
        "  {:<28} {}\n", tool::one_line(key),
        nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)));
  }
  if (!tensors) return;
  for (const TensorInfo& t : file.tensors()) {
    tool::print(fmt::format("  {:<28} {:<24} [{}, {}] {} bytes\n", tool::one_line(t.name),
                            packing_text(t), t.rows, t.cols, t.bytes));
  }
}

void tokenize(const File& file, const std::string& path) {
  const auto ids = Tokenizer::load(file)->encode(tool::read_text(path), false);
  tool::print(fmt::format("{}\n", fmt::join(ids, " ")));
}

void edit(const Options& o) {
  const auto file = File::open(o.model);
  Metadata metadata = file->metadata();
  for (const std::string& assignment : o.set) set_value(metadata, assignment);
  const std::string place = o.model + " after this --set";
  with_place(place, [&] {
    check_edit(*file, metadata);
    check_tokenizer(*file, metadata, place);
  });
  rewrite_metadata(o.model, metadata);
  tool::notice(o.quiet, o.model + ": metadata rewritten");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Looks at a .oq file, checks it, edits its metadata", "oq-info");
  Options o;
  app.add_option("MODEL", o.model, "a .oq file")->required();
  app.add_flag("--verify", o.verify, "read every tensor and check it");
  app.add_flag("--tensors", o.tensors, "list the tensors");
  app.add_option("--set", o.set, "key=value: change a metadata value in place");
  app.add_option("--tokenize", o.tokenize, "print the ids of a text file (- for stdin)");
  tool::add_json_flag(app, o.json);
  tool::add_quiet_flag(app, o.quiet);

  return tool::run(app, argc, argv, [&] {
    if (!o.set.empty()) edit(o);
    const auto file = File::open(o.model);
    if (o.verify) {
      file->verify();
      tool::notice(o.quiet, o.model + ": every checksum is right");
    }
    if (!o.tokenize.empty()) return tokenize(*file, o.tokenize);
    if (o.json) return print_json(*file);
    if (o.set.empty() && !o.verify) return print_summary(*file, o.tensors);
    if (o.tensors) print_summary(*file, true);
  });
}
