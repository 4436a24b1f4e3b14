#pragma once

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "format/file.h"
#include "tests/process.h"
#include "tests/tiny_model.h"

namespace oq::test {

/// What every test here starts from: one tiny model, converted by oq-convert in four ways.
struct Models {
  Models();

  TempDir dir;
  std::string hf = dir / "hf", gguf = dir / "model.gguf";
  std::string f16 = dir / "f16.oq", w4 = dir / "w4.oq";  ///< from `hf` and from `gguf`
  std::string endless = dir / "endless.oq";              ///< a long context, and never a stop token
  std::string text = dir / "text.txt";                   ///< of a few hundred tokens
};

/// Made once, at the first call.
const Models& models();

struct Setting {
  std::string input = {};  ///< stdin
  std::vector<std::pair<std::string, std::string>> environment = {};
  std::function<void()> before = {};  ///< in the child
};

/// Runs "oq-" + name on one thread, unless `args` say otherwise.
ProcessResult run_oq(const std::string& name, std::vector<std::string> args,
                     const Setting& setting = {});

/// The same, where it must succeed and print one JSON object.
nlohmann::json oq_json(const std::string& name, std::vector<std::string> args,
                       const Setting& setting = {});

/// Exit code 1, nothing on stdout, and a last line on stderr that begins with the tool's name and
/// holds all of `says`.
void check_fails(const std::string& name, const std::vector<std::string>& args,
                 const std::vector<std::string>& says, const Setting& setting = {});

/// A copy of a .oq file, sound but for what `change` does. `tensor` returns false to leave one out.
struct Change {
  std::function<void(Metadata&)> metadata = {};
  std::function<bool(TensorInfo&, std::string&)> tensor = {};
};
void copy_changed(const std::filesystem::path& from, const std::filesystem::path& to,
                  const Change& change);

}  // namespace oq::test
