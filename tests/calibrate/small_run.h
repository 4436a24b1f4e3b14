#pragma once

#include <filesystem>
#include <initializer_list>
#include <string>

#include <doctest/doctest.h>

#include "format/error.h"
#include "tests/support.h"
#include "tools/calibrate/options.h"

namespace oq::test {

/// A calibration of a tiny model: 3 windows of 24 tokens of its own text, 2 epochs where it learns,
/// on two threads.
inline calibrate::Options small_run(const std::filesystem::path& in,
                                    const std::filesystem::path& out, const std::string& method,
                                    const std::string& scheme) {
  calibrate::Options o;
  o.input = in;
  o.output = out;
  o.method = method;
  o.scheme = Scheme::parse(scheme);
  o.text = "self";
  o.windows = 3;
  o.window = 24;
  o.threads = 2;
  if (method == "owq") o.weak_columns = 4;
  if (method == "smoothquant") o.smooth = true;
  o.learning.epochs = 2;
  o.learning.transform = method == "abq" || o.scheme.activation_bits < 16;
  return o;
}

/// What calibrating says where it refuses; "calibrated" where it does not.
inline std::string refusal(const calibrate::Options& o) {
  try {
    calibrate::calibrate(o);
  } catch (const Error& e) {
    return e.what();
  }
  return "calibrated";
}

/// Every one of `parts` is in `text`.
inline void check_says(const std::string& text, std::initializer_list<const char*> parts) {
  for (const std::string part : parts) {
    CAPTURE(text);
    CAPTURE(part);
    CHECK(text.find(part) != std::string::npos);
  }
}

}  // namespace oq::test
