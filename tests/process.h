#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support.h"

namespace oq::test {

struct ProcessResult {
  int code = 0;  ///< exit status, or minus the signal that ended it
  std::string out, err;
};

/// A tool of this build, for the front of an argument list.
inline std::string tool(const std::string& name) { return std::string(OQ_BIN_DIR) + "/" + name; }

/// Starts a program with stdout and stderr going to files in `dir`. `before` runs in the child, to
/// set limits.
inline pid_t start(const std::vector<std::string>& args, const std::filesystem::path& dir,
                   const std::function<void()>& before = {}) {
  std::vector<char*> argv;
  for (const std::string& a : args) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  const std::string out = dir / "stdout", err = dir / "stderr";
  const pid_t child = fork();
  if (child != 0) return child;
  dup2(open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDOUT_FILENO);
  dup2(open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDERR_FILENO);
  if (before) before();
  execv(argv[0], argv.data());
  _exit(127);
}

inline int wait_for(pid_t child) {
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/// Runs a program to its end.
inline ProcessResult run(const std::vector<std::string>& args,
                         const std::function<void()>& before = {}) {
  const TempDir dir;
  const int code = wait_for(start(args, dir.path(), before));
  return {code, read_file(dir / "stdout"), read_file(dir / "stderr")};
}

}  // namespace oq::test
