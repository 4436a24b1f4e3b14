#include "format/scheme.h"

#include <doctest/doctest.h>

#include "format/error.h"
#include "format/metadata.h"

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

TEST_CASE("metadata keeps a scheme, and over which heads a range goes") {
  Metadata m;
  CHECK(Scheme::load(m) == Scheme());
  Scheme s = Scheme::parse("w4a4q4kv4");
  s.store(m);
  CHECK(m.get<std::string>("scheme") == "w4a4q4kv4");
  CHECK_FALSE(m.contains("attention.range"));
  CHECK_FALSE(Scheme::load(m).heads_share_range);
  CHECK(s.range_width(6, 20) == 20);
  s.heads_share_range = true;
  s.store(m);
  CHECK(m.get<std::string>("attention.range") == "token");
  CHECK(Scheme::load(m) == s);
  CHECK(s.range_width(6, 20) == 120);
  m.set("attention.range", std::string("head"));
  CHECK_FALSE(Scheme::load(m).heads_share_range);
  s.heads_share_range = false;  // what an earlier file said does not stay
  s.store(m);
  CHECK_FALSE(m.contains("attention.range"));
}

TEST_CASE("a range of something else is refused by its key") {
  for (const Metadata::Value& bad :
       {Metadata::Value(std::string("tensor")), Metadata::Value(std::string()),
        Metadata::Value(true), Metadata::Value(int64_t(1))}) {
    Metadata m;
    m.set("attention.range", bad);
    CHECK_THROWS_WITH_AS(Scheme::load(m), doctest::Contains("attention.range"), Error);
  }
}
