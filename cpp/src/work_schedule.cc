// SPDX-License-Identifier: Apache-2.0
#include "work_schedule.h"

#include <algorithm>
#include <bit>

namespace shplb::internal {

namespace {

constexpr int kSortBits = 12;
constexpr std::int32_t kSortBuckets = 1 << kSortBits;
constexpr std::int32_t kSortMask = kSortBuckets - 1;
/// Rows of one item per CTA. Four dealt rows cancel what two leave.
constexpr std::size_t kDealRows = 4;
constexpr std::size_t kLeadRows = 4;
constexpr std::size_t kTailRows = 3;
/// The queue's quantum is renewed once items are this much shorter.
constexpr std::int64_t kRefill = 4;
constexpr std::uint64_t kFine = 512;
constexpr std::uint64_t kCoarse = 64;

}  // namespace

WorkScheduler::WorkScheduler(std::int64_t num_ctas, std::int64_t item_ns, std::int64_t tile_ns)
    : num_ctas_(num_ctas),
      item_ns_(item_ns),
      tile_ns_(tile_ns),
      histogram_(kSortBuckets),
      count_(static_cast<std::size_t>(num_ctas)),
      indptr_(static_cast<std::size_t>(num_ctas) + 1),
      next_(static_cast<std::size_t>(num_ctas)),
      load_(static_cast<std::size_t>(num_ctas)),
      queue_(num_ctas) {}

void WorkScheduler::Schedule(WorkMethod method, std::int32_t items_per_list) {
  num_items_ = tiles_.size() * static_cast<std::size_t>(items_per_list);
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
  if (cta_.size() < num_items_) cta_.resize(num_items_);
  if (method == WorkMethod::kAuto && (AssignDealt(0) || AssignDealt(kLeadRows))) return;
  Restart();
  if (method == WorkMethod::kSnake) {
    Deal(0, num_items_);
  } else {
    LongestFirst(0, num_items_);
  }
}

/// The first `lead` rows of one item per CTA and the last ones longest-first, those between dealt.
/// False if the table is too short for that, or the result not even enough.
bool WorkScheduler::AssignDealt(std::size_t lead) {
  const auto ctas = static_cast<std::size_t>(num_ctas_);
  const std::size_t rows = num_items_ / ctas;
  if (rows < lead + kDealRows + kTailRows) return false;
  const std::size_t dealt = (rows - lead - kTailRows) / kDealRows * kDealRows;
  const std::size_t tail = (lead + dealt) * ctas;
  Restart();
  LongestFirst(0, lead * ctas);
  Deal(lead * ctas, (lead + kDealRows) * ctas);
  // What the longest items have put out of level, the tail must be able to level.
  std::int64_t tail_sum = 0;
  for (std::size_t i = tail; i < num_items_; ++i) tail_sum += LoadOf(sorted_[i].tiles);
  const Level lead_level = LevelOf();
  if (lead_level.most - lead_level.mean > tail_sum / num_ctas_) return false;
  Deal((lead + kDealRows) * ctas, tail);
  LongestFirst(tail, num_items_);
  const Level level = LevelOf();
  const std::int64_t bound = std::max(level.mean, LoadOf(sorted_[0].tiles));
  return level.most - bound <= bound / 64;
}

WorkScheduler::Level WorkScheduler::LevelOf() const {
  std::int64_t sum = 0;
  std::int64_t most = 0;
  for (const std::int64_t load : load_) {
    sum += load;
    most = std::max(most, load);
  }
  return {most, sum / num_ctas_};
}

/// Rows of one item per CTA. Which rows go back follows the Thue-Morse sequence: forth and back
/// cancels the slope of the lengths, back and forth after that their curvature, and so on.
void WorkScheduler::Deal(std::size_t from, std::size_t to) {
  const auto ctas = static_cast<std::size_t>(num_ctas_);
  for (std::size_t row = 0; from < to; ++row) {
    const std::size_t part = std::min(ctas, to - from);
    const bool back = std::popcount(row) % 2 == 1;
    const WorkItem* const item = sorted_.data() + from;
    std::uint16_t* const cta_of = cta_.data() + from;
    for (std::size_t i = 0; i < part; ++i) {
      const std::size_t cta = back ? ctas - 1 - i : i;
      cta_of[i] = static_cast<std::uint16_t>(cta);
      load_[cta] += LoadOf(item[i].tiles);
      ++count_[cta];
    }
    from += part;
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
  const bool few = num_items_ < 4 * static_cast<std::size_t>(num_ctas_);
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
