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
constexpr std::size_t kTailRows = 3;
/// A dealt table may exceed the lower bound by 1/kEnough.
constexpr std::int64_t kEnough = 64;
/// The queue's quantum is renewed once items are this much shorter.
constexpr std::int64_t kRefill = 4;
constexpr std::uint64_t kFine = 512;
constexpr std::uint64_t kCoarse = 64;

/// Rows of one item per CTA. Which rows go back follows the Thue-Morse sequence: forth and back
/// cancels the slope of the lengths, back and forth after that their curvature, and so on.
bool GoesBack(std::size_t row) { return std::popcount(row) % 2 == 1; }

}  // namespace

WorkScheduler::WorkScheduler() : histogram_(kSortBuckets) {}

void WorkScheduler::Configure(std::int64_t num_ctas, std::int64_t item_ns, std::int64_t tile_ns) {
  item_ns_ = item_ns;
  tile_ns_ = tile_ns;
  const auto ctas = static_cast<std::size_t>(num_ctas);
  if (ctas == num_ctas_) return;
  num_ctas_ = ctas;
  count_.resize(ctas);
  indptr_.resize(ctas + 1);
  next_.resize(ctas);
  load_.resize(ctas);
  queue_ = CtaQueue(num_ctas);
}

RunWriter WorkScheduler::Begin(std::size_t num_lists, std::int32_t items_per_list) {
  if (runs_.size() <= num_lists) runs_.resize(num_lists + 1);
  return RunWriter(runs_.data(), items_per_list);
}

void WorkScheduler::Schedule(WorkMethod method, const RunWriter& runs) {
  num_items_ = static_cast<std::size_t>(runs.num_items());
  if (sorted_.size() < num_items_) {
    sorted_.resize(num_items_);
    cta_.resize(num_items_);
    order_.resize(num_items_);
    dealt_.resize(num_items_ / kDealRows + 1);
  }
  Sort({runs_.data() + 1, runs.last() + 1});
  Assign(method);
  Place();
}

/// Stable counting sort, descending; keys above 12 bits need two passes. Leaves the histogram
/// empty.
void WorkScheduler::Sort(std::span<const WorkRun> runs) {
  std::int32_t largest = 0;
  std::int32_t first = 0;
  tiles_ = 0;
  for (const WorkRun& run : runs) {
    const std::int32_t items = run.end - first;
    first = run.end;
    if (run.tiles == WorkRun::kNoItems) continue;
    histogram_[run.tiles & kSortMask] += items;
    tiles_ += std::int64_t{items} * run.tiles;
    largest = std::max(largest, run.tiles);
  }
  const std::int32_t buckets = std::min(largest + 1, kSortBuckets);
  StartBuckets(buckets);
  const bool twice = largest >= kSortBuckets;
  if (twice) half_sorted_.resize(std::max(half_sorted_.size(), num_items_));
  SortByLowBits(runs, twice ? half_sorted_.data() : sorted_.data());
  std::fill_n(histogram_.begin(), buckets, 0);
  if (!twice) return;
  const std::span<const WorkItem> half(half_sorted_.data(), num_items_);
  for (const WorkItem& item : half) ++histogram_[item.tiles() >> kSortBits];
  StartBuckets((largest >> kSortBits) + 1);
  SortByHighBits(half, sorted_.data());
  std::fill_n(histogram_.begin(), (largest >> kSortBits) + 1, 0);
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

void WorkScheduler::SortByLowBits(std::span<const WorkRun> runs, WorkItem* to) {
  std::int32_t* const next = histogram_.data();
  std::int32_t first = 0;
  for (const WorkRun& run : runs) {
    const std::int32_t items = run.end - first;
    WorkItem item(run.tiles, first);
    first = run.end;
    if (run.tiles == WorkRun::kNoItems) continue;
    std::int32_t& start = next[run.tiles & kSortMask];
    WorkItem* at = to + start;
    start += items;
    WorkItem* const end = to + start;
    do {
      *at++ = item;
      ++item;
    } while (at < end);
  }
}

void WorkScheduler::SortByHighBits(std::span<const WorkItem> from, WorkItem* to) {
  std::int32_t* const next = histogram_.data();
  for (const WorkItem& item : from) to[next[item.tiles() >> kSortBits]++] = item;
}

void WorkScheduler::Restart() {
  std::fill(load_.begin(), load_.end(), 0);
  std::fill(count_.begin(), count_.end(), 0);
  std::fill_n(dealt_.begin(), num_items_ / (kDealRows * num_ctas_) + 1, std::uint8_t{0});
}

void WorkScheduler::Assign(WorkMethod method) {
  if (method == WorkMethod::kAuto && AssignDealt()) return;
  Restart();
  if (method == WorkMethod::kSnake) {
    Deal();
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
  const std::size_t part_items = kDealRows * num_ctas_;
  const std::size_t parts = (rows - kTailRows) / kDealRows;
  const std::size_t tail = parts * part_items;
  std::int64_t tail_tiles = 0;
  for (std::size_t i = tail; i < num_items_; ++i) tail_tiles += sorted_[i].tiles();
  const auto items = static_cast<std::int64_t>(num_items_);
  const std::int64_t bound = std::max(MeanLoad(items, tiles_), LoadOf(sorted_[0]));
  const std::int64_t can_level =
      MeanLoad(items - static_cast<std::int64_t>(tail), tail_tiles) + bound / (2 * kEnough);
  Restart();
  bool level = true;
  for (std::size_t part = 0; part < parts; ++part) {
    if (level) {
      DealPart(part);
    } else {
      LongestFirst(part * part_items, (part + 1) * part_items);
    }
    level = Unlevel() <= can_level;
  }
  if (!level) return false;
  LongestFirst(tail, num_items_);
  return *std::max_element(load_.begin(), load_.end()) - bound <= bound / kEnough;
}

/// Load per CTA.
std::int64_t WorkScheduler::MeanLoad(std::int64_t items, std::int64_t tiles) const {
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

void WorkScheduler::Deal() {
  const std::size_t parts = num_items_ / (kDealRows * num_ctas_);
  for (std::size_t part = 0; part < parts; ++part) DealPart(part);
  for (std::size_t from = parts * kDealRows * num_ctas_; from < num_items_; from += num_ctas_) {
    DealRow(from, std::min(num_ctas_, num_items_ - from));
  }
}

/// Of the four rows of a part, the inner two go the other way.
void WorkScheduler::DealPart(std::size_t part) {
  dealt_[part] = 1;
  const std::size_t ctas = num_ctas_;
  const WorkItem* const item = sorted_.data() + part * kDealRows * ctas;
  std::int64_t* const loads = load_.data();
  const bool back = GoesBack(part * kDealRows);
  for (std::size_t i = 0; i < ctas; ++i) {
    const std::size_t j = ctas - 1 - i;
    const std::int32_t tiles = item[i].tiles() + item[ctas + j].tiles() +
                               item[2 * ctas + j].tiles() + item[3 * ctas + i].tiles();
    loads[back ? j : i] += item_ns_ * kDealRows + tile_ns_ * tiles;
  }
  for (std::int32_t& count : count_) count += kDealRows;
}

void WorkScheduler::DealRow(std::size_t from, std::size_t items) {
  const bool back = GoesBack(from / num_ctas_);
  for (std::size_t i = 0; i < items; ++i) {
    const std::size_t cta = back ? num_ctas_ - 1 - i : i;
    cta_[from + i] = static_cast<std::uint16_t>(cta);
    load_[cta] += LoadOf(sorted_[from + i]);
    ++count_[cta];
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
    const std::int64_t load = item_ns + tile_ns * items[i].tiles();
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

/// Writes order_ and indptr_.
void WorkScheduler::Place() {
  std::int32_t sum = 0;
  for (std::size_t cta = 0; cta < count_.size(); ++cta) {
    next_[cta] = indptr_[cta] = sum;
    sum += count_[cta];
  }
  indptr_.back() = sum;
  const std::size_t part_items = kDealRows * num_ctas_;
  for (std::size_t part = 0; part * part_items < num_items_; ++part) {
    if (dealt_[part] != 0) {
      PlacePart(part);
      continue;
    }
    const std::size_t end = std::min(num_items_, (part + 1) * part_items);
    std::int32_t* const next = next_.data();
    for (std::size_t i = part * part_items; i < end; ++i) {
      order_[next[cta_[i]]++] = sorted_[i].index();
    }
  }
}

/// Each CTA's four items of a dealt part follow each other in the table.
void WorkScheduler::PlacePart(std::size_t part) {
  const std::size_t ctas = num_ctas_;
  const WorkItem* const item = sorted_.data() + part * kDealRows * ctas;
  std::int32_t* const order = order_.data();
  std::int32_t* const next = next_.data();
  const bool back = GoesBack(part * kDealRows);
  for (std::size_t i = 0; i < ctas; ++i) {
    const std::size_t j = ctas - 1 - i;
    const std::size_t cta = back ? j : i;
    std::int32_t* const to = order + next[cta];
    to[0] = item[i].index();
    to[1] = item[ctas + j].index();
    to[2] = item[2 * ctas + j].index();
    to[3] = item[3 * ctas + i].index();
    next[cta] += kDealRows;
  }
}

}  // namespace shplb::internal
