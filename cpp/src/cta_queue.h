// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

namespace shplb::internal {

/// CTAs by load, least first, up to a quantum: a ring of buckets along the load axis. A bucket is a
/// list, first in first out, whose sentinel is a node like any other: so a push is two stores
/// without a branch, and a pop has one that is nearly always predicted.
class CtaQueue {
 public:
  CtaQueue() = default;
  explicit CtaQueue(std::int64_t num_ctas)
      : num_ctas_(static_cast<std::uint32_t>(num_ctas)),
        link_(static_cast<std::size_t>(num_ctas) + kMostBuckets),
        tail_(kMostBuckets) {}

  /// Takes in every CTA, with buckets for items of `item_load` ns or less: `fineness` (a power of
  /// two, at most 512) or half of that to one such item, fewer if the loads lie far apart.
  void Fill(std::span<const std::int64_t> loads, std::int64_t item_load, std::uint64_t fineness) {
    mask_ = 4 * fineness - 1;
    std::iota(tail_.begin(), tail_.begin() + static_cast<std::ptrdiff_t>(mask_ + 1), num_ctas_);
    std::int64_t most = loads[0];
    base_ = loads[0];
    for (const std::int64_t load : loads) {
      base_ = std::min(base_, load);
      most = std::max(most, load);
    }
    // Few items would not catch up with CTAs far ahead, which the ring would then turn in vain.
    const std::int64_t scale = std::max(item_load, (most - base_) / 16);
    shift_ = std::bit_width(static_cast<std::uint64_t>(scale) / fineness);
    front_ = 0;
    current_ = last_ = Sentinel(0);
    for (std::uint32_t cta = 0; cta < num_ctas_; ++cta) Push(cta, loads[cta]);
  }

  /// The least loaded CTA, which must be pushed again before the next pop.
  std::uint32_t Pop(const std::int64_t* loads) {
    for (;;) {
      if (current_ == last_) Advance();
      current_ = link_[current_];
      if (BucketOf(loads[current_]) <= front_) return current_;
      Push(current_, loads[current_]);  // was farther away than the ring is long
    }
  }

  void Push(std::uint32_t cta, std::int64_t load) {
    const std::uint64_t bucket = std::min(BucketOf(load), front_ + mask_) & mask_;
    link_[tail_[bucket]] = static_cast<std::uint32_t>(cta);
    tail_[bucket] = static_cast<std::uint32_t>(cta);
  }

 private:
  static constexpr std::uint64_t kMostBuckets = 2048;

  std::uint32_t Sentinel(std::uint64_t bucket) const {
    return static_cast<std::uint32_t>(num_ctas_ + bucket);
  }
  std::uint64_t BucketOf(std::int64_t load) const {
    return static_cast<std::uint64_t>(load - base_) >> shift_;
  }
  /// Takes the list of the next occupied bucket out of the ring.
  void Advance() {
    while (tail_[front_ & mask_] == Sentinel(front_ & mask_)) ++front_;
    current_ = Sentinel(front_ & mask_);
    last_ = tail_[front_ & mask_];
    tail_[front_ & mask_] = current_;
  }

  std::uint32_t num_ctas_ = 0;
  std::vector<std::uint32_t> link_;  // next in the list [num_ctas, then sentinels]
  std::vector<std::uint32_t> tail_;  // last of each bucket's list, its sentinel if empty
  std::uint64_t mask_ = 0;           // number of buckets - 1
  std::int64_t base_ = 0;            // load of bucket 0
  int shift_ = 0;                    // log2 of a bucket's width in ns
  std::uint64_t front_ = 0;          // bucket of the latest pop; earlier ones are empty
  std::uint32_t current_ = 0;        // of the list taken out: the one popped last
  std::uint32_t last_ = 0;           // its end
};

}  // namespace shplb::internal
