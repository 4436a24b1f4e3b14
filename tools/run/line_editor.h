#pragma once

#include <memory>
#include <optional>
#include <string>

namespace oq {

/// Lines from a person: with editing and a history that outlives the program on a terminal, plain
/// lines from anything else.
class LineEditor {
 public:
  /// `prompt` is shown on a terminal only.
  explicit LineEditor(std::string prompt);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  /// The next line without its newline; nothing at the end of the input. Ctrl-C gives an empty
  /// line.
  std::optional<std::string> next();

 private:
  struct Terminal;
  std::string prompt_;
  std::unique_ptr<Terminal> terminal_;  ///< only where there is one
};

}  // namespace oq
