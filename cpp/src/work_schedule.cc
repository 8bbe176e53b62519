// SPDX-License-Identifier: Apache-2.0
#include "work_schedule.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace shplb::internal {

namespace {

constexpr int kSortBits = 12;
constexpr std::int32_t kSortBuckets = 1 << kSortBits;
constexpr std::int32_t kSortMask = kSortBuckets - 1;
/// Rows of one item per CTA. Four dealt rows cancel what two leave.
constexpr std::size_t kDealRows = 4;
constexpr std::size_t kTailRows = 3;
/// A dealt table may exceed the lower bound by 1/kEnough.
constexpr std::int64_t kEnough = 64;
/// The queue's quantum is renewed once items are this much shorter.
constexpr std::int64_t kRefill = 4;
constexpr std::uint64_t kFine = 512;
constexpr std::uint64_t kCoarse = 64;

}  // namespace

WorkScheduler::WorkScheduler() : histogram_(kSortBuckets) {}

void WorkScheduler::Configure(std::int64_t num_ctas, std::int64_t item_ns, std::int64_t tile_ns) {
  item_ns_ = item_ns;
  tile_ns_ = tile_ns;
  const auto ctas = static_cast<std::size_t>(num_ctas);
  if (ctas == num_ctas_) return;
  num_ctas_ = ctas;
  forth_.resize(ctas);
  std::iota(forth_.begin(), forth_.end(), std::uint16_t{0});
  back_.assign(forth_.rbegin(), forth_.rend());
  count_.resize(ctas);
  indptr_.resize(ctas + 1);
  next_.resize(ctas);
  load_.resize(ctas);
  queue_ = CtaQueue(num_ctas);
}

void WorkScheduler::Schedule(WorkMethod method, std::int32_t items_per_list) {
  num_items_ = tiles_.size() * static_cast<std::size_t>(items_per_list);
  if (cta_.size() < num_items_) cta_.resize(num_items_);
  Sort(FindRuns(items_per_list));
  Assign(method);
  StartPositions();
}

/// Every list overwrites the run's end, and only the last list of a run moves on: no branch.
std::size_t WorkScheduler::FindRuns(std::int32_t items_per_list) {
  const std::size_t num_lists = tiles_.size();
  if (ends_.size() < num_lists) ends_.resize(num_lists);
  const std::int32_t* const tiles = tiles_.data();
  RunEnd* end = ends_.data();
  std::int32_t item = 0;
  for (std::size_t i = 0; i + 1 < num_lists; ++i) {
    item += items_per_list;
    *end = {tiles[i], item};
    end += tiles[i] != tiles[i + 1] ? 1 : 0;
  }
  *end++ = {tiles[num_lists - 1], item + items_per_list};
  return static_cast<std::size_t>(end - ends_.data());
}

/// Stable counting sort, descending; keys above 12 bits need two passes.
void WorkScheduler::Sort(std::size_t num_runs) {
  std::int32_t largest = 0;
  for (const std::int32_t tiles : tiles_) largest = std::max(largest, tiles);
  if (sorted_.size() < num_items_) sorted_.resize(num_items_);
  const std::span<const RunEnd> runs(ends_.data(), num_runs);
  const bool twice = largest >= kSortBuckets;
  std::fill(histogram_.begin(), histogram_.begin() + (twice ? kSortBuckets : largest + 1), 0);
  std::int32_t first = 0;
  for (const RunEnd& run : runs) {
    histogram_[run.tiles & kSortMask] += run.end - first;
    first = run.end;
  }
  StartBuckets(twice ? kSortBuckets : largest + 1);
  if (!twice) {
    SortByLowBits(runs, sorted_.data());
    return;
  }
  half_sorted_.resize(num_items_);
  SortByLowBits(runs, half_sorted_.data());
  std::fill(histogram_.begin(), histogram_.end(), 0);
  for (const WorkItem& item : half_sorted_) ++histogram_[item.tiles >> kSortBits];
  StartBuckets((largest >> kSortBits) + 1);
  SortByHighBits(half_sorted_, sorted_.data());
}

/// Turns counts into first positions, buckets descending.
void WorkScheduler::StartBuckets(std::int32_t buckets) {
  std::int32_t* const start = histogram_.data();
  std::int32_t sum = 0;
  for (std::int32_t bucket = buckets - 1; bucket >= 0; --bucket) {
    const std::int32_t count = start[bucket];
    start[bucket] = sum;
    sum += count;
  }
}

void WorkScheduler::SortByLowBits(std::span<const RunEnd> from, WorkItem* to) {
  std::int32_t* const next = histogram_.data();
  std::int32_t item = 0;
  for (const RunEnd& run : from) {
    std::int32_t& start = next[run.tiles & kSortMask];
    WorkItem* at = to + start;
    start += run.end - item;
    do {
      *at++ = {run.tiles, item++};
    } while (item < run.end);
  }
}

void WorkScheduler::SortByHighBits(std::span<const WorkItem> from, WorkItem* to) {
  std::int32_t* const next = histogram_.data();
  for (const WorkItem& item : from) to[next[item.tiles >> kSortBits]++] = item;
}

void WorkScheduler::Restart() {
  std::fill(load_.begin(), load_.end(), 0);
  std::fill(count_.begin(), count_.end(), 0);
}

void WorkScheduler::Assign(WorkMethod method) {
  if (method == WorkMethod::kAuto && AssignDealt()) return;
  Restart();
  if (method == WorkMethod::kSnake) {
    Deal(0, num_items_);
  } else {
    LongestFirst(0, num_items_);
  }
}

/// Four rows at a time: dealt while the tail can level what is out of level, longest-first where it
/// can't; the tail longest-first. False if the table is too short for that, or the result not even
/// enough.
bool WorkScheduler::AssignDealt() {
  const std::size_t rows = num_items_ / num_ctas_;
  if (rows < kDealRows + kTailRows) return false;
  const std::size_t part = kDealRows * num_ctas_;
  const std::size_t tail = (rows - kTailRows) / kDealRows * part;
  const std::int64_t bound = std::max(MeanLoadFrom(0), LoadOf(sorted_[0]));
  const std::int64_t can_level = MeanLoadFrom(tail) + bound / (2 * kEnough);
  Restart();
  bool level = true;
  for (std::size_t item = 0; item < tail; item += part) {
    if (level) {
      Deal(item, item + part);
    } else {
      LongestFirst(item, item + part);
    }
    level = Unlevel() <= can_level;
  }
  if (!level) return false;
  LongestFirst(tail, num_items_);
  return *std::max_element(load_.begin(), load_.end()) - bound <= bound / kEnough;
}

/// Load per CTA of the items from `first` on.
std::int64_t WorkScheduler::MeanLoadFrom(std::size_t first) const {
  std::int64_t tiles = 0;
  for (std::size_t i = first; i < num_items_; ++i) tiles += sorted_[i].tiles;
  const auto items = static_cast<std::int64_t>(num_items_ - first);
  return (item_ns_ * items + tile_ns_ * tiles) / static_cast<std::int64_t>(num_ctas_);
}

/// By how much the most loaded CTA is above the mean.
std::int64_t WorkScheduler::Unlevel() const {
  std::int64_t sum = 0;
  std::int64_t most = 0;
  for (const std::int64_t load : load_) {
    sum += load;
    most = std::max(most, load);
  }
  return most - sum / static_cast<std::int64_t>(num_ctas_);
}

/// Rows of one item per CTA. Which rows go back follows the Thue-Morse sequence: forth and back
/// cancels the slope of the lengths, back and forth after that their curvature, and so on.
void WorkScheduler::Deal(std::size_t from, std::size_t to) {
  for (; from + num_ctas_ <= to; from += num_ctas_) DealRow(from, num_ctas_);
  if (from < to) DealRow(from, to - from);
}

void WorkScheduler::DealRow(std::size_t from, std::size_t items) {
  const bool back = std::popcount(from / num_ctas_) % 2 == 1;
  const std::vector<std::uint16_t>& order = back ? back_ : forth_;
  const WorkItem* const item = sorted_.data() + from;
  std::copy_n(order.data(), items, cta_.data() + from);
  for (std::size_t i = 0; i < items; ++i) {
    load_[order[i]] += LoadOf(item[i]);
    ++count_[order[i]];
  }
}

void WorkScheduler::LongestFirst(std::size_t from, std::size_t to) {
  const WorkItem* const items = sorted_.data();
  std::uint16_t* const cta_of = cta_.data();
  std::int64_t* const loads = load_.data();
  std::int32_t* const counts = count_.data();
  const std::int64_t item_ns = item_ns_;
  const std::int64_t tile_ns = tile_ns_;
  CtaQueue queue = std::move(queue_);  // a local object, whose members can stay in registers
  std::int64_t renew_below = INT64_MAX;
  // With few items per CTA every choice counts.
  const bool few = num_items_ < 4 * num_ctas_;
  const std::uint64_t fineness = few ? kFine : kCoarse;
  for (std::size_t i = from; i < to; ++i) {
    const std::int64_t load = item_ns + tile_ns * items[i].tiles;
    if (load < renew_below) {
      queue.Fill(load_, load, fineness);
      renew_below = load / kRefill;
    }
    const std::uint32_t cta = queue.Pop(loads);
    cta_of[i] = static_cast<std::uint16_t>(cta);
    ++counts[cta];
    loads[cta] += load;
    queue.Push(cta, loads[cta]);
  }
  queue_ = std::move(queue);
}

void WorkScheduler::StartPositions() {
  std::int32_t sum = 0;
  for (std::size_t cta = 0; cta < count_.size(); ++cta) {
    next_[cta] = indptr_[cta] = sum;
    sum += count_[cta];
  }
  indptr_.back() = sum;
}

}  // namespace shplb::internal
