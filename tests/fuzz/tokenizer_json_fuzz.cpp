// tokenizer.json: any bytes are refused with oq::Error, or make a tokenizer that encodes and
// decodes without a crash.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "format/error.h"
#include "tools/convert/json.h"
#include "tools/convert/tokenizer_json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto root = oq::convert::parse_json({reinterpret_cast<const char*>(data), size}, "fuzz");
    const auto tokenizer =
        oq::make_tokenizer(oq::convert::tokenizer_from_json(root, "fuzz"), "fuzz");
    for (const bool special : {false, true}) {
      tokenizer->decode(tokenizer->encode(
          "ab 11\n \xC3\xA9<|end|>\xFF it's e\xCC\x81\xE2\x96\x81 \xE1\x84\x80\xE1\x85\xA1",
          special));
    }
  } catch (const oq::Error&) {
  }
  return 0;
}
