#include "format/error.h"

#include <doctest/doctest.h>

using namespace oq;

TEST_CASE("a place is put before an error's own, once") {
  const auto where = [](const std::string& place, const std::string& own) {
    try {
      with_place(place, [&] { throw Error({.what = "is bad", .where = own}); });
    } catch (const Error& e) {
      return e.parts().where;
    }
    return std::string("nothing was thrown");
  };
  CHECK(where("m.oq", "") == "m.oq");
  CHECK(where("m.oq", "m.oq") == "m.oq");
  CHECK(where("m.oq", "m.oq, tensor 'x'") == "m.oq, tensor 'x'");
  CHECK(where("blocks.0.q", "blocks.0.q.upper") == "blocks.0.q.upper");
  CHECK(where("t", "tensor 'x'") == "t, tensor 'x'");
  CHECK(where("a long place", "short") == "a long place, short");
}
