// The least that goes from a .oq file to text: MODEL.oq PROMPT COUNT, the likeliest token each
// time.

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "runtime/decoder.h"
#include "runtime/tokenizer/text_stream.h"
#include "runtime/tokenizer/tokenizer.h"

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: example MODEL.oq PROMPT COUNT\n");
    return 2;
  }
  try {
    const auto file = oq::File::open(argv[1]);
    const auto tokenizer = oq::Tokenizer::load(*file);
    oq::Decoder decoder(file, oq::make_cpu_backend(/*threads=*/1), {});
    oq::Utf8Stream shown;  // a token may be a part of a character
    auto logits = decoder.feed(tokenizer->encode(argv[2], true));
    for (int i = 0; i < std::atoi(argv[3]); ++i) {
      const auto next = int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
      std::fputs(shown.push(tokenizer->token_bytes(next)).c_str(), stdout);
      logits = decoder.feed({&next, 1});
    }
    std::puts(shown.finish().c_str());
  } catch (const oq::Error& e) {
    std::fprintf(stderr, "example: %s\n", e.what());
    return 1;
  }
}
