#pragma once

#include <string>
#include <vector>

#include "tests/process.h"
#include "tests/tiny_model.h"

namespace oq::test {

/// One tiny model with a tokenizer, converted in several ways.
struct Models {
  Models();

  TempDir dir;
  std::string f16 = dir / "f16.oq", w3 = dir / "w3.oq";
  std::string per_tensor = dir / "t.oq";  ///< w8a8t: one activation range per sequence
  std::string other = dir / "other.oq";   ///< as f16, but for the name of one token
  std::string text = dir / "text.txt";    ///< of a few hundred tokens
};

/// Made once, at the first call.
const Models& models();

/// oq-eval on one thread.
ProcessResult oq_eval(std::vector<std::string> args);

}  // namespace oq::test
