// SPDX-License-Identifier: Apache-2.0
// Stands in for libFuzzer where the compiler has none: random inputs, a count given as argument.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "input.h"

int main(int argc, char** argv) {
  const long count = argc > 1 ? std::atol(argv[1]) : 100'000;
  std::mt19937_64 random(1);
  std::vector<std::uint8_t> data;
  for (long i = 0; i < count; ++i) {
    data.resize(random() % 512);
    for (auto& byte : data) byte = static_cast<std::uint8_t>(random());
    LLVMFuzzerTestOneInput(data.data(), data.size());
  }
  std::printf("%ld inputs\n", count);
  return 0;
}
