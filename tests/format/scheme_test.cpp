#include "format/scheme.h"

#include <doctest/doctest.h>

#include "format/error.h"

using namespace oq;

TEST_CASE("schemes read and write alike") {
  for (const char* text : {"w4a16g128", "w3a16", "w2*a8", "w4a8t", "w6a6q6kv6", "w4sa16g64",
                           "w16a16", "w2*sa4tg96q4kv4", "w16a8"}) {
    CHECK(Scheme::parse(text).str() == text);
  }
  const Scheme s = Scheme::parse("w2*sa4tg96q8kv4");
  CHECK(s.weight_bits == 2);
  CHECK(s.five_levels);
  CHECK(s.symmetric);
  CHECK(s.activation_bits == 4);
  CHECK(s.per_tensor);
  CHECK(s.group == 96);
  CHECK(s.query_bits == 8);
  CHECK(s.kv_bits == 4);
}

TEST_CASE("what is no scheme is refused") {
  for (const char* text : {"",         "w",          "w4",      "4a16",
                           "w1a16",    "w9a16",      "w4a16g",  "w4a16g0",
                           "w4a16g33", "w3*a16",     "w16sa16", "w16*a16",
                           "w4a16t",   "w16a16g64",  "w4a16 ",  "w4a16g99999999999",
                           "w04a16",   "w4a16kv4q4", "W4A16",   "w4a8tt"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(Scheme::parse(text), Error);
  }
}
