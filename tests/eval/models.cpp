#include "tests/eval/models.h"

#include <doctest/doctest.h>

namespace oq::test {
namespace {

void convert(const std::string& from, const std::string& to, const std::string& scheme) {
  const auto r = run({tool("oq-convert"), from, "-o", to, "--scheme", scheme, "--quiet"});
  REQUIRE_MESSAGE(r.code == 0, r.err);
}

void rename_token(const std::filesystem::path& folder, const std::string& from,
                  const std::string& to) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".json") continue;
    std::string s = read_file(entry.path());
    for (size_t at = 0; (at = s.find(from, at)) != s.npos; at += to.size()) {
      s.replace(at, from.size(), to);
    }
    write_file(entry.path(), s);
  }
}

}  // namespace

Models::Models() {
  TinyOptions options;
  options.context = 300;
  write_tiny_hf(dir / "hf", 1, options);
  convert(dir / "hf", f16, "w16a16");
  convert(dir / "hf", w3, "w3a16g32");
  convert(dir / "hf", per_tensor, "w8a8t");
  rename_token(dir / "hf", "<|im_end|>", "<|im_over|>");
  convert(dir / "hf", other, "w16a16");
  std::string words;
  for (int i = 0; i < 20; ++i) {
    words += " the cat and the dog of the house, 19" + std::to_string(50 + 3 * i) + "\n";
  }
  write_file(text, words);
}

const Models& models() {
  static const Models made;
  return made;
}

ProcessResult oq_eval(std::vector<std::string> args) {
  args.insert(args.begin(), tool("oq-eval"));
  args.insert(args.end(), {"--threads", "1", "--quiet"});
  return run(args);
}

}  // namespace oq::test
