#include "tools/run/generator.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>

#include <fmt/format.h>

#include "format/crc32c.h"

namespace oq {
namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double rate(int64_t tokens, double seconds) { return seconds > 0 ? double(tokens) / seconds : 0; }

/// The process's anonymous memory in MiB: what is its own, the mapped file not counted.
double private_mib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("RssAnon:", 0) == 0) return std::stod(line.substr(8)) / 1024;
  }
  return 0;
}

}  // namespace

std::string_view to_string(Ending e) {
  switch (e) {
    case Ending::stop_token:
      return "stop token";
    case Ending::stop_string:
      return "stop string";
    case Ending::length:
      return "length";
    case Ending::context_full:
      return "context full";
    case Ending::interrupted:
      return "interrupted";
  }
  return "?";
}

RunStats& RunStats::operator+=(const RunStats& o) {
  prompt_tokens += o.prompt_tokens;
  decode_tokens += o.decode_tokens;
  prompt_seconds += o.prompt_seconds;
  decode_seconds += o.decode_seconds;
  decode_bytes += o.decode_bytes;
  logits_hash = o.logits_hash;
  return *this;
}

std::string RunStats::line() const {
  const double gbs = decode_seconds > 0 ? decode_bytes / decode_seconds / 1e9 : 0;
  return fmt::format(
      "prompt {} tokens, {:.1f} tokens/s; decode {} tokens, {:.1f} tokens/s, {:.1f} GB/s; "
      "{:.0f} MiB of its own memory; logits {:08x}",
      prompt_tokens, rate(prompt_tokens, prompt_seconds), decode_tokens,
      rate(decode_tokens, decode_seconds), gbs, private_mib(), logits_hash);
}

bool Generator::feed_prompt(std::span<const int32_t> prompt, const std::atomic<bool>& interrupted,
                            RunStats& stats) {
  if (decoder_.length() + int64_t(prompt.size()) > decoder_.context()) {
    decoder_.append(prompt);  // throws, and says what to do, before any work is done
  }
  const auto start = Clock::now();
  const int64_t before = decoder_.length();
  bool whole = true;
  for (size_t first = 0; first == 0 || first < prompt.size();) {
    const size_t n = std::min(prompt.size() - first, size_t(decoder_.max_rows()));
    decoder_.append(prompt.subspan(first, n));
    first += n;
    if (interrupted.load(std::memory_order_relaxed) && first < prompt.size()) {
      decoder_.truncate(before);
      whole = false;
      break;
    }
  }
  if (whole) {
    decoder_.logits();  // the prompt's time ends when they are there
    for (int32_t id : prompt) sampler_.accept(id);
  }
  stats.prompt_tokens += int64_t(prompt.size());
  stats.prompt_seconds += since(start);
  return whole;
}

bool Generator::has_room(const Answer& answer, const std::atomic<bool>& interrupted,
                         const MakeRoom& make_room, RunStats& stats) {
  if (decoder_.length() < decoder_.context()) return true;
  const std::vector<int32_t> kept = make_room ? make_room(answer.tokens) : std::vector<int32_t>();
  if (kept.empty()) return false;
  decoder_.truncate(0);
  sampler_.truncate(0);
  return feed_prompt(kept, interrupted, stats);
}

Answer Generator::run(std::span<const int32_t> prompt, int64_t max_tokens, const Show& show,
                      const std::atomic<bool>& interrupted, const MakeRoom& make_room) {
  Answer answer;
  RunStats& stats = answer.stats;
  if (!feed_prompt(prompt, interrupted, stats)) {
    answer.ending = Ending::interrupted;
    return answer;
  }
  StopStrings stops(stop_strings_);
  Utf8Stream shown;
  const auto emit = [&](const std::string& bytes) {
    answer.text += bytes;
    if (const std::string text = shown.push(bytes); !text.empty()) show(text);
  };
  // Some models round their vocabulary up: what the tokenizer does not know is padding.
  const auto known = std::min(decoder_.config().vocab, int64_t(tokenizer_.vocab_size()));
  const auto decode_start = Clock::now();
  const double prompt_seconds = stats.prompt_seconds;
  while (true) {
    const auto made = int64_t(answer.tokens.size());
    answer.ending = Ending::length;
    if (made == max_tokens) break;
    answer.ending = Ending::interrupted;
    if (interrupted.load(std::memory_order_relaxed)) break;
    const int32_t id = decoder_.sample(sampler_, known);
    answer.ending = Ending::stop_token;
    if (std::find(stop_ids_.begin(), stop_ids_.end(), id) != stop_ids_.end()) break;
    answer.ending = Ending::context_full;
    if (!has_room(answer, interrupted, make_room, stats)) break;
    sampler_.accept(id);
    answer.tokens.push_back(id);
    emit(stops.push(tokenizer_.token_bytes(id)));
    stats.decode_bytes +=
        double(decoder_.bytes_per_token()) + double(decoder_.kv_bytes(decoder_.length()));
    decoder_.append({&id, 1});
    answer.ending = Ending::stop_string;
    if (stops.stopped()) break;
  }
  const bool forgotten = decoder_.length() == 0;  // interrupted while room was made
  if (forgotten) answer.ending = Ending::interrupted;
  emit(stops.finish());
  if (const std::string rest = shown.finish(); !rest.empty()) show(rest);
  stats.decode_tokens = int64_t(answer.tokens.size());
  stats.decode_seconds = since(decode_start) - (stats.prompt_seconds - prompt_seconds);
  if (!forgotten) stats.logits_hash = crc32c(std::as_bytes(decoder_.logits()));
  return answer;
}

}  // namespace oq
