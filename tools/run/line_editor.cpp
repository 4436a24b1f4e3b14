#include "tools/run/line_editor.h"

#include <cerrno>
#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>

#include <histedit.h>
#include <unistd.h>

namespace oq {
namespace {

constexpr int kHistoryLines = 1000;

/// Where the history is kept, or "" where there is no home.
std::filesystem::path history_path() {
  const char* state = std::getenv("XDG_STATE_HOME");
  const char* home = std::getenv("HOME");
  std::filesystem::path folder;
  if (state != nullptr && *state == '/') {
    folder = state;
  } else if (home != nullptr && *home == '/') {
    folder = std::filesystem::path(home) / ".local/state";
  } else {
    return {};
  }
  std::error_code error;
  std::filesystem::create_directories(folder / "oq", error);
  return error ? std::filesystem::path() : folder / "oq" / "history";
}

char* prompt_of(EditLine* editor) {
  void* prompt = nullptr;
  el_get(editor, EL_CLIENTDATA, &prompt);
  return static_cast<char*>(prompt);
}

}  // namespace

struct LineEditor::Terminal {
  explicit Terminal(std::string& prompt) : path(history_path()) {
    std::setlocale(LC_CTYPE, "");  // editing counts characters, not bytes
    editor = el_init("oq-run", stdin, stdout, stderr);
    history_ = history_init();
    HistEvent event;
    history(history_, &event, H_SETSIZE, kHistoryLines);
    history(history_, &event, H_SETUNIQUE, 1);
    if (!path.empty()) history(history_, &event, H_LOAD, path.c_str());
    el_set(editor, EL_CLIENTDATA, prompt.data());
    el_set(editor, EL_PROMPT, prompt_of);
    el_set(editor, EL_EDITOR, "emacs");
    el_set(editor, EL_HIST, history, history_);
    el_set(editor, EL_BIND, "^R", "em-inc-search-prev", nullptr);
    el_source(editor, nullptr);
  }
  ~Terminal() {
    history_end(history_);
    el_end(editor);
  }

  void remember(const char* line) {
    HistEvent event;
    history(history_, &event, H_ENTER, line);
    if (!path.empty()) history(history_, &event, H_SAVE, path.c_str());  // now: we may be killed
  }

  std::filesystem::path path;
  EditLine* editor;
  History* history_;
};

LineEditor::LineEditor(std::string prompt) : prompt_(std::move(prompt)) {
  if (isatty(STDIN_FILENO) && isatty(STDOUT_FILENO))
    terminal_ = std::make_unique<Terminal>(prompt_);
}

LineEditor::~LineEditor() = default;

std::optional<std::string> LineEditor::next() {
  std::string line;
  if (!terminal_) {
    if (!std::getline(std::cin, line)) return std::nullopt;
    return line;
  }
  int count = 0;
  errno = 0;
  const char* text = el_gets(terminal_->editor, &count);
  if (text == nullptr || count <= 0) {
    if (errno != EINTR) return std::nullopt;
    el_reset(terminal_->editor);
    std::fputc('\n', stdout);
    return line;
  }
  line = text;
  if (line.find_first_not_of(" \t\n") != std::string::npos) terminal_->remember(text);
  while (!line.empty() && line.back() == '\n') line.pop_back();
  return line;
}

}  // namespace oq
