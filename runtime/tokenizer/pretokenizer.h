#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace oq {

/// Both lists together; the longest that we know of has 6. Each costs stack and time, whatever the
/// text.
constexpr size_t kMostPatterns = 64;

/// Cuts a text into the words that byte pair encoding stays inside of.
///
/// Each pattern in turn cuts every piece that the ones before it left: its matches and the gaps
/// between them become the new pieces, seen by the next pattern as texts of their own. Nothing is
/// lost. `patterns` are PCRE2 with UTF, UCP, MULTILINE and LF newlines, and are held against the
/// valid UTF-8 in the text: every run of invalid bytes is a piece of its own. `byte_patterns`
/// follow; they see bytes, not characters, and all of them.
///
/// Immutable: any number of threads may use one.
class Pretokenizer {
 public:
  /// Throws oq::Error when a pattern does not compile, or there are more than kMostPatterns;
  /// `where` names the file.
  Pretokenizer(std::span<const std::string> patterns, std::span<const std::string> byte_patterns,
               const std::string& where);
  ~Pretokenizer();

  /// Appends the pieces of `text`, which are views into it. Throws oq::Error when a match takes
  /// more work than a sane pattern can cause, or lies where no match can be.
  void split(std::string_view text, std::vector<std::string_view>& pieces) const;

 private:
  class Pattern;
  class Run;
  std::vector<Pattern> stages_;
  size_t byte_stages_ = 0;  ///< the first of `byte_patterns` in `stages_`
};

}  // namespace oq
