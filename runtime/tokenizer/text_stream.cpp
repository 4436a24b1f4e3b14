#include "runtime/tokenizer/text_stream.h"

#include <algorithm>
#include <utility>

#include "format/error.h"
#include "runtime/tokenizer/utf8.h"

namespace oq {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

std::string Utf8Stream::push(std::string_view bytes) {
  held_ += bytes;
  std::string text;
  size_t at = 0;
  while (at < held_.size()) {
    const Utf8Step step = utf8_step(held_, at);
    if (step.status == Utf8Step::incomplete) break;
    text += step.status == Utf8Step::valid ? std::string_view(held_).substr(at, step.bytes)
                                           : kReplacement;
    at += step.bytes;
  }
  held_.erase(0, at);
  return text;
}

std::string Utf8Stream::finish() {
  const bool cut = !held_.empty();
  held_.clear();
  return cut ? std::string(kReplacement) : std::string();
}

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) {
    if (stop.empty()) {
      throw Error({.what = "a stop string is empty", .hint = "give --stop some text"});
    }
  }
}

std::string StopStrings::push(std::string_view bytes) {
  if (stopped_) return {};
  held_ += bytes;
  size_t begin = std::string::npos, end = std::string::npos;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    if (at + stop.size() < end || (at + stop.size() == end && at < begin)) {
      begin = at;
      end = at + stop.size();
    }
  }
  if (end != std::string::npos) {
    stopped_ = true;
    held_.erase(begin);
    return std::exchange(held_, {});
  }
  size_t hold = 0;  // the longest end of `held_` that starts a stop string
  for (const std::string& stop : stops_) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > hold; --n) {
      if (held_.ends_with(std::string_view(stop).substr(0, n))) hold = n;
    }
  }
  std::string sure = held_.substr(0, held_.size() - hold);
  held_.erase(0, sure.size());
  return sure;
}

std::string StopStrings::finish() {
  if (stopped_) return {};
  return std::exchange(held_, {});
}

}  // namespace oq
