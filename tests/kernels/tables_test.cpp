#include <cstdlib>
#include <string>

#include <doctest/doctest.h>

#include "kernels/cpu/kernels.h"

using namespace oq;

TEST_CASE("the tables that run here are those that the CPU is known to have") {
  const char* known = std::getenv("OQ_TEST_KERNELS");  // of the CPUs that an emulator plays
  if (known == nullptr) return;
  std::string names;
  for (const cpu::Kernels* k : cpu::available_kernels()) {
    names += (names.empty() ? "" : " ") + std::string(k->name);
  }
  CHECK(names == std::string(known));
}
