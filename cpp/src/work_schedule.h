// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cta_queue.h"

namespace shplb::internal {

enum class WorkMethod { kAuto, kLongestFirst, kSnake };

struct WorkItem {
  std::int32_t tiles;  // KV tiles, in [0, 2^24)
  std::int32_t index;
};

/// Assigns work items to the CTAs of one GPU. Keeps its scratch, so that nothing is allocated once
/// the largest step has been seen. One object per thread.
class WorkScheduler {
 public:
  WorkScheduler();

  /// Of the following schedules. Load of an item = item_ns + tile_ns * tiles.
  void Configure(std::int64_t num_ctas, std::int64_t item_ns, std::int64_t tile_ns);

  /// Input: KV tiles of every list, in [0, 2^24).
  std::vector<std::int32_t>& tiles() { return tiles_; }

  /// Items [i * items_per_list, (i + 1) * items_per_list) read list i. Longest first, equal lengths
  /// in input order, onto the CTA with least load up to a quantum. kAuto deals the longer items of
  /// a long table over the CTAs row by row and leaves it to the last rows, placed longest-first, to
  /// level what that left; if a CTA then exceeds the lower bound by more than 1/64, everything is
  /// longest-first.
  void Schedule(WorkMethod method, std::int32_t items_per_list = 1);

  /// CTA c runs what stands at [indptr[c], indptr[c + 1]) of the table, longest first
  /// [num_ctas + 1].
  std::span<const std::int32_t> indptr() const { return indptr_; }
  /// Calls write(position in the table, item) once per item, in descending length. Once per
  /// schedule.
  template <class Write>
  void ForEachItem(Write write) {
    std::int32_t* const next = next_.data();
    for (std::size_t i = 0; i < num_items_; ++i) write(next[cta_[i]]++, sorted_[i].index);
  }
  /// ns [num_ctas].
  std::span<const std::int64_t> loads() const { return load_; }
  /// In descending length.
  std::span<const WorkItem> sorted_items() const { return {sorted_.data(), num_items_}; }

  std::int64_t LoadOf(const WorkItem& item) const { return item_ns_ + tile_ns_ * item.tiles; }

 private:
  /// Consecutive items of equal length, and where they end. Blocks that follow each other keep
  /// nearly the same number of pages, so there are far fewer runs than items to sort.
  struct RunEnd {
    std::int32_t tiles;
    std::int32_t end;
  };

  std::size_t FindRuns(std::int32_t items_per_list);
  void Sort(std::size_t num_runs);
  void StartBuckets(std::int32_t buckets);
  void SortByLowBits(std::span<const RunEnd> from, WorkItem* to);
  void SortByHighBits(std::span<const WorkItem> from, WorkItem* to);
  void Assign(WorkMethod method);
  bool AssignDealt();
  void Deal(std::size_t from, std::size_t to);
  void DealRow(std::size_t from, std::size_t items);
  void LongestFirst(std::size_t from, std::size_t to);
  void Restart();
  std::int64_t MeanLoadFrom(std::size_t first) const;
  std::int64_t Unlevel() const;
  void StartPositions();

  std::size_t num_ctas_ = 0;
  std::int64_t item_ns_ = 0;
  std::int64_t tile_ns_ = 0;
  std::vector<std::int32_t> tiles_;
  std::vector<RunEnd> ends_;
  std::vector<WorkItem> half_sorted_, sorted_;
  std::vector<std::int32_t> histogram_;
  std::vector<std::uint16_t> forth_, back_;  // CTAs of a dealt row [num_ctas]
  std::vector<std::uint16_t> cta_;           // [num_items], by position in the descending order
  std::vector<std::int32_t> count_, indptr_, next_;  // items per CTA, their positions
  std::vector<std::int64_t> load_;
  std::size_t num_items_ = 0;
  CtaQueue queue_;
};

}  // namespace shplb::internal
