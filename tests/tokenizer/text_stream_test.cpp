#include "runtime/tokenizer/text_stream.h"

#include <random>

#include <doctest/doctest.h>

#include "format/error.h"

namespace {

/// Pushes `bytes` in pieces of random size; the result must not depend on them.
template <class Stream>
std::string feed(Stream stream, std::string_view bytes, uint32_t seed) {
  std::mt19937 random(seed);
  std::string text;
  while (!bytes.empty()) {
    const size_t n = std::min<size_t>(bytes.size(), 1 + random() % 4);
    text += stream.push(bytes.substr(0, n));
    bytes.remove_prefix(n);
  }
  return text + stream.finish();
}

}  // namespace

TEST_CASE("characters are shown once they are whole") {
  oq::Utf8Stream stream;
  CHECK(stream.push("a\xF0\x9F") == "a");
  CHECK(stream.push("\x98") == "");
  CHECK(stream.push("\x80"
                    "b") ==
        "\xF0\x9F\x98\x80"
        "b");
  CHECK(stream.finish() == "");
  CHECK(stream.push("\xE2\x82") == "");
  CHECK(stream.finish() == "\xEF\xBF\xBD");
  CHECK(stream.finish() == "");
}

TEST_CASE("invalid bytes are shown as U+FFFD, one for each maximal subpart") {
  // The example of Unicode 15, table 3-11 and the ones before it.
  const std::pair<std::string, size_t> cases[] = {
      {"\xC0\xAF", 2},     {"\xE0\x80\xBF", 3},
      {"\xED\xA0\x80", 3}, {"\xF4\x91\x92\x93", 4},
      {"\xFF", 1},         {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF", 4},
      {"\x80\xBF", 2},     {"\xF0\x80\x80\x80", 4},
      {"\xF8\x88", 2}};
  for (const auto& [bytes, count] : cases) {
    std::string expected;
    for (size_t i = 0; i < count; ++i) expected += "\xEF\xBF\xBD";
    for (uint32_t seed = 0; seed < 8; ++seed) {
      CHECK(feed(oq::Utf8Stream(), bytes + "A", seed) == expected + "A");
    }
  }
}

TEST_CASE("the answer ends before a stop string, however it is cut") {
  struct Case {
    std::vector<std::string> stops;
    std::string bytes, expected;
  };
  const Case cases[] = {
      {{"STOP"}, "go STOP on", "go "},
      {{"STOP"}, "go STO", "go STO"},
      {{"STOP"}, "SSTSTOSTOP", "SSTSTO"},
      {{"aab"}, "aaab", "a"},
      {{"abc", "b"}, "xabc", "xa"},
      {{"abc", "c"}, "xabc", "x"},
      {{"\nUser:", "</s>"}, "hi</\nUser: x</s>", "hi</"},
      {{}, "all", "all"},
  };
  for (const Case& c : cases) {
    for (uint32_t seed = 0; seed < 20; ++seed) {
      CHECK(feed(oq::StopStrings(c.stops), c.bytes, seed) == c.expected);
    }
    oq::StopStrings whole(c.stops);
    const std::string pushed = whole.push(c.bytes);
    CHECK(pushed + whole.finish() == c.expected);
  }
}

TEST_CASE("after a stop string nothing comes") {
  oq::StopStrings stream({"END"});
  CHECK(stream.push("xEN") == "x");
  CHECK_FALSE(stream.stopped());
  CHECK(stream.push("Dy") == "");
  CHECK(stream.stopped());
  CHECK(stream.push("more") == "");
  CHECK(stream.finish() == "");
  CHECK_THROWS_AS(oq::StopStrings({"a", ""}), oq::Error);
}
