// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace shplb::internal {

/// Lays int32 arrays one after the other, each 16-byte aligned, as FlashInfer's allocator does.
/// With an empty buffer it only measures.
class IntLayout {
 public:
  /// start: bytes in use, a multiple of 16.
  explicit IntLayout(std::span<std::byte> buffer = {}, std::int64_t start = 0)
      : buffer_(buffer), used_(start) {}

  /// Byte offset of an array of `count` int32.
  std::int64_t Add(std::int64_t count) {
    const std::int64_t offset = used_;
    used_ += (count * 4 + 15) / 16 * 16;
    return offset;
  }

  std::int64_t used() const { return used_; }

  std::int32_t* At(std::int64_t offset) const {
    return reinterpret_cast<std::int32_t*>(buffer_.data() + offset);
  }

 private:
  std::span<std::byte> buffer_;
  std::int64_t used_;
};

}  // namespace shplb::internal
