// Normalization Form C against Python's (golden/nfc.json), and on bytes that are no text.

#include "runtime/tokenizer/nfc.h"

#include <doctest/doctest.h>

#include "tests/support.h"
#include "tools/convert/json.h"

namespace {

std::string nfc(std::string_view text) {
  std::string storage;
  return std::string(oq::to_nfc(text, storage));
}

}  // namespace

TEST_CASE("NFC is what Python makes of every character and of strings") {
  const auto golden = oq::convert::read_json(oq::test::golden("nfc.json"));
  REQUIRE(golden.size() >= 500);
  size_t changed = 0;
  for (const auto& pair : golden) {
    const auto text = pair[0].get<std::string>(), expected = pair[1].get<std::string>();
    CAPTURE(pair[0].dump());
    CHECK(nfc(text) == expected);
    CHECK(nfc(expected) == expected);
    changed += text != expected;
  }
  CHECK(changed > 100);
}

TEST_CASE("text that is in NFC is not copied") {
  std::string storage;
  for (const std::string_view text : {"", "plain", "caf\xC3\xA9 \xE6\x97\xA5\xEA\xB0\x80"}) {
    CHECK(oq::to_nfc(text, storage).data() == text.data());
  }
}

TEST_CASE("what is no UTF-8 stays, and nothing composes across it") {
  CHECK(nfc("e\xFF\xCC\x81") == "e\xFF\xCC\x81");
  CHECK(nfc("e\xCC\x81\xFF\xCC") == "\xC3\xA9\xFF\xCC");
  CHECK(nfc("\xED\xA0\x80\xCC\x81") == "\xED\xA0\x80\xCC\x81");
}

TEST_CASE("a long run of marks takes no quadratic time") {
  std::string text = "e";
  for (int i = 0; i < 300000; ++i) text += (i % 2) != 0 ? "\xCC\x81" : "\xCC\xA3";
  CHECK(nfc(text).size() == text.size());  // "e" and the first mark become U+1EB9
  CHECK(nfc(text).starts_with("\xE1\xBA\xB9\xCC\xA3"));
}
