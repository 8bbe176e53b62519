// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "shplb/error.h"

namespace shplb::fuzz {

/// Values from the fuzzer's bytes; zeros once they are used up.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

  template <class T>
  T Take() {
    T value{};
    const std::size_t count = left_ < sizeof(T) ? left_ : sizeof(T);
    std::memcpy(&value, data_, count);
    data_ += count;
    left_ -= count;
    return value;
  }

  /// Mostly a small value that makes sense, now and then any 64-bit one.
  std::int64_t Extent(std::int64_t sensible) {
    const auto byte = Take<std::uint8_t>();
    if (byte >= 250) return Take<std::int64_t>();
    return byte % (sensible + 1);
  }

  /// As Extent, but from 1 on: how many of something there are.
  std::int64_t Count(std::int64_t sensible) {
    const auto byte = Take<std::uint8_t>();
    if (byte >= 250) return Take<std::int64_t>();
    return 1 + byte % sensible;
  }

  /// a * b modulo 2^64, for sizes of arrays that absurd extents would ask for.
  static std::size_t Product(std::int64_t a, std::int64_t b) {
    return static_cast<std::size_t>(a) * static_cast<std::size_t>(b);
  }

  bool Bit() { return Take<std::uint8_t>() % 2 != 0; }

 private:
  const std::uint8_t* data_;
  std::size_t left_;
};

/// Aborts with the reason: the fuzzer reports it as a finding.
inline void Expect(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "broken promise: %s\n", what);
  std::abort();
}

/// Runs `solve`; a refusal must say argument, got and expected.
template <class Solve>
void Guard(Solve solve) {
  try {
    solve();
  } catch (const InvalidArgument& refusal) {
    const std::string text = refusal.what();
    Expect(
        text.find(": got ") != std::string::npos && text.find(", expected ") != std::string::npos,
        "the message says got and expected");
  } catch (const Infeasible&) {
  }
}

/// What one target does with an input; each target defines it.
void Run(Input* input);

}  // namespace shplb::fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
