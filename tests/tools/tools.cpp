#include "tests/tools/tools.h"

#include <cstring>

namespace oq::test {
namespace {

void convert(const std::string& from, const std::string& to, const std::string& scheme) {
  const auto r = run_oq("convert", {from, "-o", to, "--scheme", scheme, "--quiet"});
  REQUIRE_MESSAGE(r.code == 0, r.err);
}

/// The rows of the head that would end an answer become zeros: with 300 random logits beside them,
/// one is always above 0, so greedy decoding never takes them.
void never_stop(const std::string& path) {
  copy_changed(path, path + ".new", {.tensor = [](TensorInfo& info, std::string& data) {
                 if (info.name != "head") return true;
                 const size_t row = info.bytes / info.rows;
                 for (size_t id : {0, 2}) std::memset(data.data() + id * row, 0, row);
                 return true;
               }});
  std::filesystem::rename(path + ".new", path);
}

std::string last_line(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.substr(text.rfind('\n') + 1);  // npos + 1 is 0
}

}  // namespace

Models::Models() {
  write_tiny_hf(hf, 1);
  write_tiny_gguf(gguf, 1);
  TinyOptions long_context;
  long_context.context = 1 << 17;
  write_tiny_hf(dir / "long", 1, long_context);
  std::string words;
  for (int i = 0; i < 40; ++i) {
    words += " the cat and the dog of the house, 19" + std::to_string(50 + i) + "\n";
    if (i % 7 == 0) words += "\n";
  }
  write_file(text, words);
  convert(hf, f16, "w16a16");
  convert(gguf, w4, "w4a16g32");
  convert(dir / "long", endless, "w16a16");
  never_stop(endless);
}

const Models& models() {
  static const Models made;
  return made;
}

ProcessResult run_oq(const std::string& name, std::vector<std::string> args,
                     const Setting& setting) {
  const TempDir dir;
  const std::string input = dir / "stdin";
  write_file(input, setting.input);
  args.insert(args.begin(), tool("oq-" + name));
  const bool threads = std::find(args.begin(), args.end(), "--threads") != args.end();
  if (!threads && name != "info") args.insert(args.end(), {"--threads", "1"});
  return run(args, [&] {
    dup2(open(input.c_str(), O_RDONLY), STDIN_FILENO);
    for (const auto& [key, value] : setting.environment) setenv(key.c_str(), value.c_str(), 1);
    if (setting.before) setting.before();
  });
}

nlohmann::json oq_json(const std::string& name, std::vector<std::string> args,
                       const Setting& setting) {
  args.emplace_back("--json");
  const ProcessResult r = run_oq(name, args, setting);
  REQUIRE_MESSAGE(r.code == 0, r.err);
  REQUIRE(nlohmann::json::accept(r.out));
  return nlohmann::json::parse(r.out);
}

void check_fails(const std::string& name, const std::vector<std::string>& args,
                 const std::vector<std::string>& says, const Setting& setting) {
  const ProcessResult r = run_oq(name, args, setting);
  const std::string message = last_line(r.err);
  CAPTURE(r.err);
  CHECK(r.code == 1);
  CHECK(r.out.empty());
  CHECK(message.find("oq-" + name + ": ") == 0);
  for (const std::string& part : says) {
    CAPTURE(part);
    CHECK(message.find(part) != std::string::npos);
  }
}

void copy_changed(const std::filesystem::path& from, const std::filesystem::path& to,
                  const Change& change) {
  const auto file = File::open(from);
  Writer writer(to, file->tensors().size());
  writer.metadata = file->metadata();
  if (change.metadata) change.metadata(writer.metadata);
  for (TensorInfo info : file->tensors()) {
    const auto bytes = file->data(info);
    std::string data(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (change.tensor && !change.tensor(info, data)) continue;
    writer.add(info, std::as_bytes(std::span(data)));
  }
  writer.finish();
}

}  // namespace oq::test
