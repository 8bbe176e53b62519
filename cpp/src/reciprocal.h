// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>

namespace shplb::internal {

/// Division by a number that a compiler does not know, as a multiplication. Exact for dividends
/// and divisors in [0, 2^24] but 0 / 0 and the like (Granlund and Montgomery 1994).
class Reciprocal {
 public:
  explicit Reciprocal(std::uint32_t divisor)
      : shift_(kBits + std::bit_width(divisor - 1)),
        factor_(((std::uint64_t{1} << shift_) + divisor - 1) / divisor) {}

  std::uint32_t Divide(std::uint32_t dividend) const {
    return static_cast<std::uint32_t>(dividend * factor_ >> shift_);
  }

 private:
  static constexpr int kBits = 25;
  int shift_;
  std::uint64_t factor_;  // at most 2^26
};

}  // namespace shplb::internal
