// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace shplb::internal {

inline constexpr std::int64_t kMaxCtas = 4096;
/// Keys of the sort are 24 bits: two passes of 12.
inline constexpr std::int32_t kMaxTiles = (1 << 24) - 1;

enum class WorkMethod { kAuto, kLongestFirst, kSnake };

/// Assigns work items to the CTAs of one GPU. Keeps its scratch, so that nothing is allocated once
/// the largest step has been seen. One object per thread.
class WorkScheduler {
 public:
  WorkScheduler(std::int64_t num_ctas, std::int64_t item_ns, std::int64_t tile_ns);

  /// `tiles` [num_items]: KV tiles of every item, in [0, kMaxTiles]; load = item_ns + tile_ns *
  /// tiles. Longest first, equal lengths in input order, onto the CTA with least load up to a
  /// quantum of at most 1/512 of the longest item. kAuto deals long tables forth and back over the
  /// CTAs (snake) and leaves the shortest items to longest-first; if a CTA then exceeds the lower
  /// bound by more than 1/64, everything is longest-first.
  void Schedule(std::span<const std::int32_t> tiles, WorkMethod method);

  /// Items in descending length [num_items].
  std::span<const std::int32_t> sorted() const { return sorted_; }
  /// CTA of sorted()[i] [num_items].
  std::span<const std::uint16_t> cta() const { return cta_; }
  /// CTA c runs positions [indptr[c], indptr[c + 1]), longest item first [num_ctas + 1].
  std::span<const std::int32_t> indptr() const { return indptr_; }
  /// ns [num_ctas].
  std::span<const std::int64_t> loads() const { return load_; }

  /// Calls emit(position, item) for every item once; positions are those of indptr().
  template <class Emit>
  void ForEach(Emit emit) {
    next_.assign(indptr_.begin(), indptr_.end());
    for (std::size_t i = 0; i < sorted_.size(); ++i) emit(next_[cta_[i]]++, sorted_[i]);
  }

 private:
  void Sort(std::span<const std::int32_t> tiles);
  void SortPass(std::span<const std::int32_t> tiles, int shift, std::int32_t buckets,
                std::span<const std::int32_t> from, std::span<std::int32_t> to);
  std::int64_t LoadOf(std::int32_t tiles) const { return item_ns_ + tile_ns_ * tiles; }
  void Deal(std::span<const std::int32_t> tiles, std::size_t end);
  void LongestFirst(std::span<const std::int32_t> tiles, std::size_t begin);
  bool IsBalanced(std::span<const std::int32_t> tiles) const;
  void CountItems();

  std::int64_t num_ctas_;
  std::int64_t item_ns_;
  std::int64_t tile_ns_;
  std::vector<std::int32_t> sorted_;
  std::vector<std::int32_t> half_sorted_;  // after the first of two passes
  std::vector<std::int32_t> histogram_;
  std::vector<std::uint16_t> cta_;
  std::vector<std::int32_t> indptr_;
  std::vector<std::int32_t> next_;
  std::vector<std::int64_t> load_;
  std::vector<std::int32_t> count_;
  // Monotone bucket queue of CTAs by load: first-in first-out inside a bucket, so that equal items
  // that follow each other land on different CTAs at about the same time.
  std::vector<std::int16_t> bucket_head_, bucket_tail_, queue_next_;
  std::vector<std::uint64_t> occupied_;  // one bit per bucket
};

}  // namespace shplb::internal
