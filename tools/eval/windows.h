#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "runtime/decoder.h"

namespace oq {

/// A text's ids cut into windows that do not overlap; what is left over at the end is dropped.
struct Windows {
  std::span<const int32_t> ids;
  int64_t size = 0;  ///< tokens of a window; all but the first are scored
  int64_t count = 0;

  std::span<const int32_t> operator[](int64_t i) const {
    return ids.subspan(size_t(i * size), size_t(size));
  }
  int64_t scored_tokens() const { return count * (size - 1); }
};

/// At most `max_windows` windows (0: all). Throws oq::Error when the text is shorter than one
/// window, or has ids that are not below `vocab`. The windows look at `ids`.
Windows cut_windows(std::span<const int32_t> ids, int64_t size, int64_t max_windows, int64_t vocab);

/// One step of sequence 0 from `position` on, with the logits of every token.
void step_with_logits(Decoder& decoder, std::span<const int32_t> tokens, int64_t position);

/// The string that the papers make of WikiText: every line with its newline (an empty one without
/// text or newline), joined by two newlines.
std::string join_like_hf(std::string_view text);

}  // namespace oq
