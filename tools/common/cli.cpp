#include "tools/common/cli.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <iostream>

#include <fmt/format.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <sys/resource.h>
#include <unistd.h>

#include "kernels/cpu/thread_pool.h"

namespace oq::tool {
namespace {

constexpr const char* kClearLine = "\r\x1b[K";

/// Whole lines for people, to stderr. Where it is closed or full, nobody can be told.
spdlog::logger& log() {
  static const auto logger = [] {
    auto made =
        std::make_shared<spdlog::logger>("oq", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_pattern("%v");
    made->set_error_handler([](const std::string&) {});
    return made;
  }();
  return *logger;
}

/// A line that is still being rewritten.
void show_raw(const std::string& text) { std::fputs(text.c_str(), stderr); }

OutputError output_error() {
  return OutputError(
      {.what = fmt::format("cannot write: {}", std::strerror(errno)), .where = "standard output"});
}

int fail(const CLI::App& app, std::string_view what) {
  std::fflush(stdout);
  log().error("{}: {}", app.get_name(), one_line(what));
  return 1;
}

std::string duration(double seconds) {
  const auto s = int64_t(std::lround(std::clamp(seconds, 0.0, 1e9)));
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{}:{:02}", s / 60, s % 60);
  return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
}

}  // namespace

uint64_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return uint64_t(usage.ru_maxrss) << 10;
}

int run(CLI::App& app, int argc, char** argv, const std::function<void()>& body) {
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  app.set_version_flag("--version", fmt::format("{} {}", app.get_name(), version()));
  try {
    app.parse(argc, argv);
    body();
    print({});  // what is still buffered must reach its reader for the job to be done
    return 0;
  } catch (const CLI::ParseError& e) {
    if (app.exit(e) != 0) return 2;
    return std::cout.flush() ? 0 : fail(app, output_error().what());  // of --help and --version
  } catch (const std::bad_alloc&) {
    return fail(app, "not enough memory");
  } catch (const std::exception& e) {
    return fail(app, e.what());
  }
}

CLI::ValidationError usage_error(const std::string& what) { return CLI::ValidationError(what); }

void add_threads_flag(CLI::App& app, int& threads) {
  threads = usable_cores();
  app.add_option("--threads", threads, "threads to use")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
}

void add_json_flag(CLI::App& app, bool& json) {
  app.add_flag("--json", json, "print one JSON object on stdout");
}

void add_quiet_flag(CLI::App& app, bool& quiet) {
  app.add_flag("--quiet", quiet, "no progress and no notices");
}

void add_backend_flag(CLI::App& app, std::string& backend) {
  backend = "auto";
  app.add_option("--backend", backend, "auto, cpu or cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
}

void add_exact_flags(CLI::App& app, bool& exact, int& kv_bits) {
  app.add_flag("--exact", exact, "fp32 activations, and the KV cache too unless --kv says else");
  app.add_option("--kv", kv_bits,
                 "bits of the KV cache: 32 and 16 are floats, 8 and 4 codes in bytes (default: "
                 "the scheme's, else 16)")
      ->check(CLI::IsMember({4, 8, 16, 32}));
}

void add_weak_flag(CLI::App& app, std::string& weak) {
  app.add_option("--weak", weak,
                 "weak columns to run with instead of the model's own (oq-calibrate --tune-weak)");
}

void add_pages_flag(CLI::App& app, Pages& pages) {
  app.add_flag_callback(
      "--huge-pages", [&pages] { pages = Pages::huge; },
      "weights (copied) and KV cache on huge pages: starts later, decodes faster on a CPU");
}

std::string_view version() { return OQ_VERSION; }

void print(std::string_view text) {
  while (!text.empty()) {
    errno = 0;
    text.remove_prefix(std::fwrite(text.data(), 1, text.size(), stdout));
    if (!text.empty() && errno != EINTR) throw output_error();
    std::clearerr(stdout);  // a signal came while a slow reader kept us waiting
  }
  while (std::fflush(stdout) != 0) {
    if (errno != EINTR) throw output_error();
    std::clearerr(stdout);
  }
}

std::string one_line(std::string_view text) {
  std::string line(text);
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  return line;
}

void report(bool quiet, std::string_view text) {
  if (!quiet) log().info("{}", one_line(text));
}

void notice(bool quiet, std::string_view text) { report(quiet, fmt::format("note: {}", text)); }

Progress::Progress(std::string job, double total, Unit unit, bool quiet)
    : job_(std::move(job)),
      total_(total),
      unit_(unit),
      quiet_(quiet),
      terminal_(isatty(STDERR_FILENO) != 0),
      start_(Clock::now()),
      shown_(start_) {}

Progress::~Progress() {
  if (line_open_) show_raw(kClearLine);
}

void Progress::advance(double done, std::string_view detail) {
  done_ += done;
  const auto interval = terminal_ ? std::chrono::milliseconds(100) : std::chrono::seconds(5);
  if (quiet_ || Clock::now() - shown_ < interval) return;
  show(detail, false);
}

void Progress::finish() {
  if (!quiet_) show({}, true);
}

void Progress::show(std::string_view detail, bool last) {
  shown_ = Clock::now();
  const double seconds = std::max(1e-3, std::chrono::duration<double>(shown_ - start_).count());
  const double share = total_ > 0 ? std::min(1.0, done_ / total_) : 1.0;
  const std::string end = last ? "in " + duration(seconds)
                               : duration(seconds * (1 - share) / std::max(share, 1e-6)) + " left";
  const std::string rate =
      unit_.rate.empty() ? ""
                         : fmt::format("{:.1f} {}, ", done_ / unit_.size / seconds, unit_.rate);
  show_raw(fmt::format("{}{}: {:3.0f} %, {}{}{}{}{}", terminal_ ? kClearLine : "", job_,
                       100 * share, rate, end, detail.empty() ? "" : ", ", one_line(detail),
                       terminal_ && !last ? "" : "\n"));
  std::fflush(stderr);
  line_open_ = terminal_ && !last;
}

}  // namespace oq::tool
