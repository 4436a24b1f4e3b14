// oq-convert --vocab-only on all that holds a tokenizer, and edits of template and stop ids in
// place.

#include "tests/tools/tools.h"

using namespace oq;
using namespace oq::test;

namespace {

/// "oq-info --tokenize" of the text, after "oq-convert --vocab-only".
std::string ids_of(const std::filesystem::path& source, const std::string& text) {
  const TempDir dir;
  const auto made = run_oq("convert", {source, "-o", dir / "v.oq", "--vocab-only", "--quiet"});
  REQUIRE_MESSAGE(made.code == 0, made.err);
  const auto ids = run_oq("info", {dir / "v.oq", "--tokenize", "-"}, {.input = text});
  CHECK(ids.code == 0);
  return ids.out;
}

/// The tiny model's tokenizer in GPT-2's two files.
void write_gpt2_files(const std::filesystem::path& folder) {
  const TinyVocabulary& v = tiny_vocabulary();
  nlohmann::json vocab;
  for (size_t id = 0; id < v.tokens.size(); ++id) vocab[v.tokens[id]] = id;
  std::string merges = "#version: 0.2\n";
  for (const auto& [left, right] : v.merges) merges += left + " " + right + "\n";
  std::filesystem::create_directories(folder);
  write_file(folder / "vocab.json", vocab.dump());
  write_file(folder / "merges.txt", merges);
}

}  // namespace

TEST_CASE("--vocab-only takes a folder, its files, and GGUF") {
  const Models& m = models();
  const std::string text = "the cat and the house of the dog";
  const std::string ids = ids_of(m.hf, text);
  CHECK(ids.size() > 10);
  CHECK(ids_of(m.gguf, text) == ids);
  CHECK(ids_of(std::filesystem::path(m.hf) / "tokenizer.json", text) == ids);
  const TempDir dir;
  write_gpt2_files(dir / "gpt2");
  CHECK(ids_of(dir / "gpt2", text) == ids);

  const std::string json = std::filesystem::path(m.hf) / "tokenizer.json";
  check_fails("convert", {json, "-o", dir / "x.oq"}, {"tokenizer.json", "--vocab-only"});
  write_file(dir / "bad.model", "\xFF\xFF");
  check_fails("convert", {dir / "bad.model", "-o", dir / "x.oq", "--vocab-only"}, {"bad.model"});
  CHECK_FALSE(std::filesystem::exists(dir / "x.oq"));
}

TEST_CASE("a tokenizer with more tokens than the embedding has rows is refused") {
  const TempDir dir;
  write_tiny_hf(dir / "hf", 1);
  const std::filesystem::path path = dir / "hf/tokenizer.json";
  auto root = nlohmann::json::parse(read_file(path));
  root["added_tokens"].push_back({{"id", 300}, {"content", "<more>"}, {"special", true}});
  write_file(path, root.dump());
  check_fails("convert", {dir / "hf", "-o", dir / "x.oq"},
              {"vocabulary and embedding disagree", "at most 300", "301"});
}

TEST_CASE("oq-info --set changes template and stop ids in place, or nothing") {
  const TempDir dir;
  const std::string path = dir / "model.oq";
  std::filesystem::copy_file(models().f16, path);
  const auto set = [&](const std::string& assignment) {
    const auto r = run_oq("info", {path, "--set", assignment, "--quiet"});
    CHECK_MESSAGE(r.code == 0, r.err);
    return oq_json("info", {path})["metadata"];
  };
  using Ids = std::vector<int64_t>;
  CHECK(set("chat.template=zephyr")["chat.template"] == "zephyr");
  CHECK(set("tokenizer.stop_ids=2,0,17")["tokenizer.stop_ids"].get<Ids>() == Ids{2, 0, 17});
  const auto chat = run_oq("run", {path, "--chat", "-p", "hello", "-n", "1"});
  CHECK(chat.err.find("template zephyr, stop tokens 2 <|im_end|>, 0 <|endoftext|>, 17 ") !=
        std::string::npos);
  CHECK(set("tokenizer.stop_ids=7")["tokenizer.stop_ids"].get<Ids>() == Ids{7});
  CHECK(set("tokenizer.stop_ids=")["tokenizer.stop_ids"].get<Ids>().empty());

  const std::string bytes = read_file(path);
  check_fails("info", {path, "--set", "chat.template=morse"}, {"model.oq", "'morse'", "zephyr"});
  check_fails("info", {path, "--set", "tokenizer.stop_ids=2,300"}, {"model.oq", "300"});
  check_fails("info", {path, "--set", "tokenizer.stop_ids=2,-1"}, {"model.oq", "-1"});
  check_fails("info", {path, "--set", "tokenizer.stop_ids=2,x"}, {"stop_ids", "'x'"});
  check_fails("info", {path, "--set", "tokenizer.stop_ids=5", "--set", "chat.template=morse"},
              {"'morse'"});
  check_fails("info", {path, "--set", "tokenizer.bos=999"},
              {"model.oq after this --set: there is no such token", "999"});
  check_fails("info", {path, "--set", "tokenizer.patterns=("}, {"tokenizer.patterns"});
  CHECK(read_file(path) == bytes);

  // A vocabulary alone has no model to count its tokens by; a model may come without a template.
  const std::string vocab = dir / "vocab.oq";
  CHECK(run_oq("convert", {models().hf, "-o", vocab, "--vocab-only", "--quiet"}).code == 0);
  check_fails("info", {vocab, "--set", "tokenizer.stop_ids=300"}, {"vocab.oq", "300"});
  copy_changed(vocab, dir / "bare.oq", {.metadata = [](Metadata& metadata) {
                 Metadata kept;
                 for (const auto& [key, value] : metadata) {
                   if (!key.starts_with("chat.")) kept.set(key, value);
                 }
                 metadata = kept;
               }});
  CHECK(run_oq("info", {dir / "bare.oq", "--set", "chat.template=plain"}).code == 0);
  CHECK(oq_json("info", {dir / "bare.oq"})["metadata"]["chat.template"] == "plain");
}
