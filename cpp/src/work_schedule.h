// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cta_queue.h"

namespace shplb::internal {

enum class WorkMethod { kAuto, kLongestFirst, kSnake };

/// One word, so that sorting moves an item with one store.
class WorkItem {
 public:
  WorkItem() = default;
  WorkItem(std::int32_t tiles, std::int32_t index)
      : word_(static_cast<std::uint64_t>(index) << 32 | static_cast<std::uint32_t>(tiles)) {}

  /// KV tiles, in [0, 2^24).
  std::int32_t tiles() const { return static_cast<std::int32_t>(word_); }
  std::int32_t index() const { return static_cast<std::int32_t>(word_ >> 32); }

  /// To the next item of equal length.
  WorkItem& operator++() {
    word_ += std::uint64_t{1} << 32;
    return *this;
  }

 private:
  std::uint64_t word_;
};

/// Consecutive items of equal length, and where they end. Blocks that follow each other keep
/// nearly the same number of pages, so there are often far fewer runs than items.
struct WorkRun {
  static constexpr std::int32_t kNoItems = -1;

  std::int32_t tiles;  // kNoItems: of lists that this GPU does not compute
  std::int32_t end;
};

/// Takes the lists of a schedule one after the other. Every list overwrites the end of the current
/// run, and only another length moves on: no branch.
class RunWriter {
 public:
  RunWriter(WorkRun* before_first, std::int32_t items_per_list)
      : run_(before_first), items_per_list_(items_per_list) {}

  /// tiles: in [0, 2^24).
  void Add(std::int32_t tiles) {
    run_ += tiles != tiles_ ? 1 : 0;
    tiles_ = tiles;
    end_ += items_per_list_;
    *run_ = {tiles, end_};
  }
  /// A list without items; they keep their numbers.
  void Skip() {
    Add(WorkRun::kNoItems);
    skipped_ += items_per_list_;
  }
  const WorkRun* last() const { return run_; }
  std::int32_t num_items() const { return end_ - skipped_; }

 private:
  WorkRun* run_;
  std::int32_t items_per_list_;
  std::int32_t tiles_ = -2;
  std::int32_t end_ = 0;
  std::int32_t skipped_ = 0;
};

/// Assigns work items to the CTAs of one GPU. Keeps its scratch, so that nothing is allocated once
/// the largest step has been seen. One object per thread.
class WorkScheduler {
 public:
  WorkScheduler();

  /// Of the following schedules. Load of an item = item_ns + tile_ns * tiles.
  void Configure(std::int64_t num_ctas, std::int64_t item_ns, std::int64_t tile_ns);

  /// For at most `num_lists` lists, at least one. Items [i * items_per_list,
  /// (i + 1) * items_per_list) read list i.
  RunWriter Begin(std::size_t num_lists, std::int32_t items_per_list = 1);

  /// Of the lists that `runs` has taken. Longest first, equal lengths in input order, onto the CTA
  /// with least load up to a quantum. kAuto deals the longer items of a long table over the CTAs
  /// row by row and leaves it to the last rows, placed longest-first, to level what that left; if a
  /// CTA then exceeds the lower bound by more than 1/64, everything is longest-first.
  void Schedule(WorkMethod method, const RunWriter& runs);

  /// CTA c runs order()[indptr[c]] to order()[indptr[c + 1] - 1], longest first [num_ctas + 1].
  std::span<const std::int32_t> indptr() const { return indptr_; }
  std::span<const std::int32_t> order() const { return {order_.data(), num_items_}; }
  /// ns [num_ctas].
  std::span<const std::int64_t> loads() const { return load_; }
  /// In descending length.
  std::span<const WorkItem> sorted_items() const { return {sorted_.data(), num_items_}; }

  std::int64_t LoadOf(const WorkItem& item) const { return item_ns_ + tile_ns_ * item.tiles(); }

 private:
  void Sort(std::span<const WorkRun> runs);
  void StartBuckets(std::int32_t buckets);
  void SortByLowBits(std::span<const WorkRun> runs, WorkItem* to);
  void SortByHighBits(std::span<const WorkItem> from, WorkItem* to);
  void Assign(WorkMethod method);
  bool AssignDealt();
  void Deal();
  void DealPart(std::size_t part);
  void DealRow(std::size_t from, std::size_t items);
  void LongestFirst(std::size_t from, std::size_t to);
  void Restart();
  std::int64_t MeanLoad(std::int64_t items, std::int64_t tiles) const;
  std::int64_t Unlevel() const;
  void Place();
  void PlacePart(std::size_t part);

  std::size_t num_ctas_ = 0;
  std::int64_t item_ns_ = 0;
  std::int64_t tile_ns_ = 0;
  std::vector<WorkRun> runs_;  // after one that is empty
  std::vector<WorkItem> half_sorted_, sorted_;
  std::vector<std::int32_t> histogram_;
  std::int64_t tiles_ = 0;              // of all items
  std::vector<std::uint8_t> dealt_{0};  // by part of kDealRows rows; cta_ says nothing of these
  std::vector<std::uint16_t> cta_;      // [num_items], by position in the descending order
  std::vector<std::int32_t> order_;     // [num_items]
  std::vector<std::int32_t> count_, indptr_, next_;  // items per CTA, their positions
  std::vector<std::int64_t> load_;
  std::size_t num_items_ = 0;
  CtaQueue queue_;
};

}  // namespace shplb::internal
