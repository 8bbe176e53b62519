// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace shplb::internal {

/// Keys of the sort are 24 bits: two passes of 12.
inline constexpr std::int32_t kMaxTiles = (1 << 24) - 1;

enum class WorkMethod { kAuto, kLongestFirst, kSnake };

/// Consecutive work items of equal length. Blocks that follow each other keep nearly the same
/// number of pages, so there are far fewer runs than items to sort.
struct WorkRun {
  std::int32_t tiles;  // KV tiles of each item, in [0, kMaxTiles]
  std::int32_t first;  // items [first, first + count)
  std::int32_t count;
};

/// Assigns work items to the CTAs of one GPU. Keeps its scratch, so that nothing is allocated once
/// the largest step has been seen. One object per thread.
class WorkScheduler {
 public:
  WorkScheduler(std::int64_t num_ctas, std::int64_t item_ns, std::int64_t tile_ns);

  /// The caller clears and fills it: every item in [0, num_items) in exactly one run, ascending.
  std::vector<WorkRun>& runs() { return runs_; }

  /// Load of an item = item_ns + tile_ns * tiles. Longest first, equal lengths in input order,
  /// onto the CTA with least load up to a quantum of at most 1/512 of the longest item. kAuto deals
  /// long tables forth and back over the CTAs (snake) between its longest and its shortest items,
  /// which are placed longest-first; if a CTA then exceeds the lower bound by more than 1/64,
  /// everything is longest-first.
  void Schedule(WorkMethod method);

  /// CTA c runs the items order()[indptr[c], indptr[c + 1]), longest first [num_ctas + 1].
  std::span<const std::int32_t> indptr() const { return indptr_; }
  std::span<const std::int32_t> order() const { return order_; }  // [num_items]
  /// ns [num_ctas].
  std::span<const std::int64_t> loads() const { return load_; }
  /// Runs in descending length.
  std::span<const WorkRun> sorted_runs() const { return sorted_; }

 private:
  /// Position in the descending order of items: `offset` items into run `run`.
  struct Cursor {
    std::size_t run = 0;
    std::int32_t offset = 0;
    std::size_t item = 0;
  };

  void Sort();
  void SortPass(int shift, std::int32_t buckets, std::span<const WorkRun> from,
                std::span<WorkRun> to);
  void Deal(Cursor* at, std::size_t end);
  void LongestFirst(Cursor* at, std::size_t end);
  void FillQueue(std::int64_t longest);
  void EmptyQueue();
  void Push(std::int16_t cta);
  std::int16_t Pop();
  bool IsBalanced() const;
  void OrderByCta();
  std::int64_t LoadOf(std::int32_t tiles) const { return item_ns_ + tile_ns_ * tiles; }

  std::int64_t num_ctas_;
  std::int64_t item_ns_;
  std::int64_t tile_ns_;
  std::vector<WorkRun> runs_, half_sorted_, sorted_;
  std::vector<std::int32_t> histogram_;
  std::vector<std::uint16_t> cta_;  // [num_items], by position in the descending order
  std::vector<std::int32_t> order_, indptr_, next_;
  std::vector<std::int64_t> load_;
  std::size_t num_items_ = 0;
  // Monotone bucket queue of CTAs by load: first-in first-out inside a bucket, so that equal items
  // that follow each other land on different CTAs at about the same time.
  std::vector<std::int16_t> bucket_head_, bucket_tail_, queue_next_;
  std::vector<std::uint64_t> occupied_;  // one bit per bucket
  std::int64_t queue_base_ = 0;          // load of bucket 0
  int queue_shift_ = 0;                  // log2 of a bucket's width
  std::size_t queue_front_ = 0;          // no CTA in an earlier bucket
};

}  // namespace shplb::internal
