#pragma once

#include <map>
#include <string>
#include <vector>

namespace oq {

/// Another program's throughput on the same tests, by their names ("pp512", "tg128 @ d4096"), in
/// tokens per second, one value per run.
class Peer {
 public:
  /// `command` is for the shell, and prints JSON: llama-bench's (`-o json`), or oq-bench's own.
  explicit Peer(std::string command) : command_(std::move(command)) {}

  /// Runs it once. Throws oq::Error when it fails, or prints nothing that is understood.
  void run();
  /// Of all runs so far, sorted; empty where it has no such test.
  std::vector<double> rates(const std::string& test) const;

 private:
  std::string command_;
  std::map<std::string, std::vector<double>> rates_;
};

/// What a peer's output says: test name to tokens per second. Throws oq::Error.
std::map<std::string, double> read_peer(const std::string& output);

}  // namespace oq
