#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace oq {

/// Turns bytes that come token by token into text that a terminal can show: holds back the start
/// of a character until the rest is there, and shows U+FFFD for what is no UTF-8 (one for each
/// maximal subpart, Unicode 15 section 3.9). The output does not depend on how the bytes are cut.
class Utf8Stream {
 public:
  /// The text that is now complete.
  std::string push(std::string_view bytes);
  /// What is left at the end: U+FFFD for the start of a character, or nothing.
  std::string finish();

 private:
  std::string held_;
};

/// Watches an answer for strings that end it, and holds back what could be the start of one.
///
/// The answer ends before the stop string that is complete first; of several that end at the same
/// byte, before the longest. The output does not depend on how the bytes are cut.
class StopStrings {
 public:
  /// Throws oq::Error when one is empty.
  explicit StopStrings(std::vector<std::string> stops);

  /// Bytes that are certainly a part of the answer. After `stopped`, nothing.
  std::string push(std::string_view bytes);
  /// What was held back, once no more bytes come.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace oq
