#pragma once

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>

#include <doctest/doctest.h>

#include "format/file.h"
#include "tests/support.h"
#include "tools/convert/convert.h"

namespace oq::test {

struct Converted {
  convert::Result result;
  std::shared_ptr<const File> file;
};

using ChangeOptions = std::function<void(convert::Options&)>;

/// `source` converted by a few threads, the output verified.
inline Converted converted(const std::filesystem::path& source, const std::filesystem::path& output,
                           const char* scheme = "w16a16", const ChangeOptions& change = {}) {
  convert::Options o;
  o.source = source;
  o.output = output;
  o.scheme = Scheme::parse(scheme);
  o.threads = 2;
  if (change) change(o);
  Converted c;
  c.result = convert::convert(o);
  c.file = File::open(output);
  c.file->verify();
  return c;
}

/// The conversion fails with a message that has `says` in it, and what was there stays.
inline void check_refused(const std::filesystem::path& source, const std::string& says,
                          const ChangeOptions& change = {}) {
  CAPTURE(says);
  const TempDir dir;
  write_file(dir / "out.oq", "as it was");
  try {
    converted(source, dir / "out.oq", "w16a16", change);
    FAIL_CHECK("was not refused");
  } catch (const Error& e) {
    CAPTURE(e.what());
    CHECK(std::string(e.what()).find(says) != std::string::npos);
  }
  CHECK(read_file(dir / "out.oq") == "as it was");
  CHECK_FALSE(std::filesystem::exists(dir / "out.oq.part"));
}

/// Bit for bit.
inline void check_same_tensors(const File& a, const File& b) {
  REQUIRE(a.tensors().size() == b.tensors().size());
  for (const TensorInfo& t : a.tensors()) {
    CAPTURE(t.name);
    const TensorInfo& u = b.tensor(t.name);
    CHECK(t.kind == u.kind);
    CHECK(t.rows == u.rows);
    const auto x = a.data(t), y = b.data(u);
    CHECK(std::equal(x.begin(), x.end(), y.begin(), y.end()));
  }
}

}  // namespace oq::test
