#include "runtime/tokenizer/utf8.h"

#include <array>
#include <cstdint>
#include <cstring>

namespace oq {
namespace {

/// Length of a character by its first byte, and the range that its second byte must lie in
/// (RFC 3629, section 4): the rest are 80..BF. Length 0: no character starts with this byte.
struct Lead {
  uint8_t length = 0, low = 0x80, high = 0xBF;
};

Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

constexpr std::array<std::string_view, 25> kSpaces = {
    "\t",           "\n",           "\v",           "\f",           "\r",           " ",
    "\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\x80", "\xE2\x80\x81", "\xE2\x80\x82",
    "\xE2\x80\x83", "\xE2\x80\x84", "\xE2\x80\x85", "\xE2\x80\x86", "\xE2\x80\x87", "\xE2\x80\x88",
    "\xE2\x80\x89", "\xE2\x80\x8A", "\xE2\x80\xA8", "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F",
    "\xE3\x80\x80"};

}  // namespace

Utf8Step utf8_step(std::string_view text, size_t at) {
  const Lead lead = lead_of(uint8_t(text[at]));
  if (lead.length == 0) return {Utf8Step::invalid, 1};
  for (size_t i = 1; i < lead.length; ++i) {
    if (at + i == text.size()) return {Utf8Step::incomplete, i};
    const uint8_t byte = uint8_t(text[at + i]);
    const bool fits = i == 1 ? byte >= lead.low && byte <= lead.high : (byte & 0xC0) == 0x80;
    if (!fits) return {Utf8Step::invalid, i};
  }
  return {Utf8Step::valid, lead.length};
}

size_t valid_utf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    uint64_t eight;
    if (at + 8 <= text.size()) {
      std::memcpy(&eight, text.data() + at, 8);
      if ((eight & 0x8080808080808080u) == 0) {
        at += 8;
        continue;
      }
    }
    const Utf8Step step = utf8_step(text, at);
    if (step.status != Utf8Step::valid) break;
    at += step.bytes;
  }
  return at;
}

size_t leading_space(std::string_view text) {
  size_t n = 0;
  for (size_t i = 0; i < kSpaces.size(); ++i) {
    if (!text.substr(n).starts_with(kSpaces[i])) continue;
    n += kSpaces[i].size();
    i = size_t(-1);  // from the first again
  }
  return n;
}

size_t trailing_space(std::string_view text) {
  size_t n = 0;
  for (size_t i = 0; i < kSpaces.size(); ++i) {
    if (!text.substr(0, text.size() - n).ends_with(kSpaces[i])) continue;
    n += kSpaces[i].size();
    i = size_t(-1);
  }
  return n;
}

}  // namespace oq
