// SPDX-License-Identifier: Apache-2.0
#include "input.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  shplb::fuzz::Input input(data, size);
  shplb::fuzz::Guard([&] { shplb::fuzz::Run(&input); });
  return 0;
}
