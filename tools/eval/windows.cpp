#include "tools/eval/windows.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include <fmt/format.h>

namespace oq {

Windows cut_windows(std::span<const int32_t> ids, int64_t size, int64_t max_windows,
                    int64_t vocab) {
  Windows w{.ids = ids, .size = size, .count = size > 0 ? int64_t(ids.size()) / size : 0};
  if (max_windows > 0) w.count = std::min(w.count, max_windows);
  if (w.count == 0 || size < 2) {
    throw Error({.what = "text is shorter than one window",
                 .expected = fmt::format("at least {} tokens", std::max<int64_t>(2, size)),
                 .found = std::to_string(ids.size()),
                 .hint = "choose a smaller --window"});
  }
  for (int32_t id : ids) {  // the last of a window is scored without going through the decoder
    if (id >= 0 && id < vocab) continue;
    throw Error({.what = "the tokenizer's ids go beyond the model's vocabulary",
                 .expected = fmt::format("0..{}", vocab - 1),
                 .found = std::to_string(id),
                 .hint = "convert the checkpoint again"});
  }
  return w;
}

void step_with_logits(Decoder& decoder, std::span<const int32_t> tokens, int64_t position) {
  std::vector<int32_t> positions(tokens.size()), rows(tokens.size());
  std::iota(positions.begin(), positions.end(), int32_t(position));
  std::iota(rows.begin(), rows.end(), 0);
  const std::vector<int32_t> sequences(tokens.size(), 0);
  decoder.step(
      {.tokens = tokens, .positions = positions, .sequences = sequences, .logit_rows = rows});
}

std::string join_like_hf(std::string_view text) {
  std::string joined;
  bool first = true;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end == std::string_view::npos ? end : end + 1);
    text.remove_prefix(line.size());
    if (!first) joined += "\n\n";
    first = false;
    if (line.find_first_not_of(" \t\r\n\v\f") != std::string_view::npos) joined += line;
  }
  return joined;
}

}  // namespace oq
