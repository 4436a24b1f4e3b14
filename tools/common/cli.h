#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include <CLI/CLI.hpp>

#include "format/error.h"
#include "format/memory.h"

/// What the `main` of every tool shares: flags, exit codes, one line per error, progress.
namespace oq::tool {

/// Parses the command line and runs `body`. Returns what `main` returns:
///   0  done, and after --help and --version
///   1  the job failed: `body` threw, and one line on stderr says why
///   2  wrong usage: CLI11 refused the arguments, or `body` threw `usage_error(...)`
/// A full disk and a closed pipe are errors of the write that meets them, not signals.
int run(CLI::App& app, int argc, char** argv, const std::function<void()>& body);

/// Bytes of memory that this process has had at most, mapped files included.
uint64_t peak_memory();

/// For combinations of flags that CLI11 cannot refuse on its own; throw it from `body`.
CLI::ValidationError usage_error(const std::string& what);

/// --threads N, by default every core this process may use.
void add_threads_flag(CLI::App& app, int& threads);
/// --json: one JSON object on stdout.
void add_json_flag(CLI::App& app, bool& json);
/// --quiet: neither progress nor notices.
void add_quiet_flag(CLI::App& app, bool& quiet);
/// --exact and --kv: what a Decoder::Options takes.
void add_exact_flags(CLI::App& app, bool& exact, int& kv_bits);
/// --weak: a file that open_with_weak takes.
void add_weak_flag(CLI::App& app, std::string& weak);
/// --huge-pages: what File::open and open_with_weak take.
void add_pages_flag(CLI::App& app, Pages& pages);
/// --backend auto|cpu|cuda
void add_backend_flag(CLI::App& app, std::string& backend);

/// "0.1.0", the version of the build.
std::string_view version();

/// Nobody can read stdout any more (closed pipe, full disk): nothing to go on for.
struct OutputError : Error {
  using Error::Error;
};

/// Writes to stdout at once. Throws OutputError: a tool that streams must notice.
void print(std::string_view text);

/// The text without control characters: what a hostile file calls things must not reach a terminal.
std::string one_line(std::string_view text);

/// One line on stderr. Nothing when quiet.
void report(bool quiet, std::string_view text);
/// The same as "note: ...".
void notice(bool quiet, std::string_view text);

/// How far a long job is: on a terminal one line that is rewritten ten times a second, in a log a
/// plain line every five seconds and at the end. Not thread-safe.
class Progress {
 public:
  /// `total` in units of work. The rate is shown as units per second divided by `size`:
  /// {"MB/s", 1e6} for bytes; without a name, it is not.
  struct Unit {
    std::string_view rate = {};
    double size = 1;
  };
  Progress(std::string job, double total, Unit unit, bool quiet);
  /// Clears the line of a job that failed, for the message that follows.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// `done` more units; `detail` is what is being worked on now.
  void advance(double done, std::string_view detail = {});
  /// The closing line.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  void show(std::string_view detail, bool last);

  std::string job_;
  double total_;
  Unit unit_;
  bool quiet_, terminal_;
  bool line_open_ = false;
  double done_ = 0;
  Clock::time_point start_, shown_;
};

}  // namespace oq::tool
