/// oq-tiny-gguf PATH: writes the seeded tiny model as a GGUF. scripts/demo.sh falls back on it
/// where the real model cannot be had.

#include <cstdio>

#include "tests/tiny_model.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: oq-tiny-gguf PATH\n");
    return 2;
  }
  oq::test::write_tiny_gguf(argv[1], 1);
}
