#include "tools/run/repl.h"

#include <fmt/format.h>

#include "tools/common/cli.h"
#include "tools/run/line_editor.h"

namespace oq {
namespace {

constexpr const char* kHelp =
    "/reset         start over, keeping the system message\n"
    "/system TEXT   set the system message and start over\n"
    "/stats         speed and memory so far\n"
    "/quit          leave (so does Ctrl-D); Ctrl-C stops an answer\n";

/// Carries out a line that starts with a slash; false when it asks to leave.
bool command(ChatSession& session, const std::string& line) {
  const size_t space = line.find(' ');
  const std::string name = line.substr(0, space);
  const std::string rest = space == std::string::npos ? "" : line.substr(space + 1);
  if (name == "/quit" || name == "/exit") return false;
  if (name == "/reset") {
    session.reset();
    tool::print("(conversation forgotten)\n");
  } else if (name == "/system") {
    session.set_system(rest);
    tool::print(rest.empty() ? "(default system message; conversation forgotten)\n"
                             : "(system message set; conversation forgotten)\n");
  } else if (name == "/stats") {
    tool::print(session.stats().line() + "\n");
  } else {
    tool::print(kHelp);
  }
  return true;
}

}  // namespace

void report_drop(int64_t turns) {
  tool::notice(false,
               turns == 1
                   ? std::string("the context is full: the oldest turn is forgotten")
                   : fmt::format("the context is full: the {} oldest turns are forgotten", turns));
}

void chat_repl(ChatSession& session, int64_t max_tokens, bool quiet,
               std::atomic<bool>& interrupted) {
  LineEditor editor("> ");
  tool::notice(quiet, "chat: /help lists the commands");
  while (const auto line = editor.next()) {
    interrupted = false;
    if (line->find_first_not_of(" \t") == std::string::npos) continue;
    if (line->front() == '/') {
      if (!command(session, *line)) break;
      continue;
    }
    try {
      const Answer answer = session.say(*line, max_tokens, tool::print, interrupted);
      tool::print("\n");
      if (answer.ending == Ending::context_full) {
        tool::notice(false, "the answer fills the context: --ctx makes it larger");
      } else if (answer.ending == Ending::interrupted) {
        tool::print("(stopped)\n");
      }
    } catch (const tool::OutputError&) {
      throw;
    } catch (const Error& e) {
      tool::notice(false, e.what());
    }
    interrupted = false;  // or the next Ctrl-C, at the prompt, would count as a second one
  }
}

}  // namespace oq
