// SPDX-License-Identifier: Apache-2.0
#include "work_schedule.h"

#include <algorithm>
#include <bit>

namespace shplb::internal {

namespace {

constexpr std::int32_t kSortBits = 12;
constexpr std::int32_t kSortBuckets = 1 << kSortBits;
/// The spread of loads in the queue stays below half of the ring, so order is never ambiguous.
constexpr std::size_t kQueueBuckets = 4096;
constexpr std::int64_t kQuantaPerSpread = 1024;
/// Rows of one item per CTA. Longer tables are dealt between their first and their last rows.
constexpr std::size_t kLongestFirstRows = 24;
constexpr std::size_t kFirstRows = 8;
constexpr std::size_t kLastRows = 8;

}  // namespace

WorkScheduler::WorkScheduler(std::int64_t num_ctas, std::int64_t item_ns, std::int64_t tile_ns)
    : num_ctas_(num_ctas),
      item_ns_(item_ns),
      tile_ns_(tile_ns),
      histogram_(kSortBuckets),
      indptr_(static_cast<std::size_t>(num_ctas) + 1),
      next_(static_cast<std::size_t>(num_ctas) + 1),
      load_(static_cast<std::size_t>(num_ctas)),
      bucket_head_(kQueueBuckets, -1),
      bucket_tail_(kQueueBuckets, -1),
      queue_next_(static_cast<std::size_t>(num_ctas), -1),
      occupied_(kQueueBuckets / 64) {}

void WorkScheduler::Schedule(WorkMethod method) {
  num_items_ =
      runs_.empty() ? 0 : static_cast<std::size_t>(runs_.back().first + runs_.back().count);
  Sort();
  cta_.resize(num_items_);
  std::fill(load_.begin(), load_.end(), 0);
  const auto ctas = static_cast<std::size_t>(num_ctas_);
  Cursor at;
  if (method == WorkMethod::kSnake) {
    Deal(&at, num_items_);
  } else if (method == WorkMethod::kLongestFirst || num_items_ <= kLongestFirstRows * ctas) {
    LongestFirst(&at, num_items_);
  } else {
    LongestFirst(&at, kFirstRows * ctas);
    // An even number of rows, so that the dealt part ends where it began.
    const std::size_t rows = (num_items_ / ctas - kFirstRows - kLastRows) / 2 * 2;
    Deal(&at, (kFirstRows + rows) * ctas);
    LongestFirst(&at, num_items_);
    if (!IsBalanced()) {
      std::fill(load_.begin(), load_.end(), 0);
      at = {};
      LongestFirst(&at, num_items_);
    }
  }
  OrderByCta();
}

void WorkScheduler::Sort() {
  sorted_.resize(runs_.size());
  std::int32_t largest = 0;
  for (const WorkRun& run : runs_) largest = std::max(largest, run.tiles);
  if (largest < kSortBuckets) {
    SortPass(0, largest + 1, runs_, sorted_);
    return;
  }
  half_sorted_.resize(runs_.size());
  SortPass(0, kSortBuckets, runs_, half_sorted_);
  SortPass(kSortBits, (largest >> kSortBits) + 1, half_sorted_, sorted_);
}

/// Stable counting sort, descending, by `buckets` values of the key bits above `shift`.
void WorkScheduler::SortPass(int shift, std::int32_t buckets, std::span<const WorkRun> from,
                             std::span<WorkRun> to) {
  constexpr std::int32_t kMask = kSortBuckets - 1;
  std::int32_t* const start = histogram_.data();
  std::fill(start, start + buckets, 0);
  for (const WorkRun& run : from) ++start[run.tiles >> shift & kMask];
  std::int32_t sum = 0;
  for (std::int32_t bucket = buckets - 1; bucket >= 0; --bucket) {
    const std::int32_t count = start[bucket];
    start[bucket] = sum;
    sum += count;
  }
  for (const WorkRun& run : from) to[start[run.tiles >> shift & kMask]++] = run;
}

void WorkScheduler::Deal(Cursor* at, std::size_t end) {
  const std::int32_t last = static_cast<std::int32_t>(num_ctas_) - 1;
  std::int32_t cta = 0;
  std::int32_t step = 1;
  while (at->item < end) {
    const WorkRun& run = sorted_[at->run];
    const std::int64_t load = LoadOf(run.tiles);
    for (; at->offset < run.count && at->item < end; ++at->offset) {
      cta_[at->item++] = static_cast<std::uint16_t>(cta);
      load_[cta] += load;
      cta += step;
      if (cta < 0 || cta > last) {
        step = -step;
        cta += step;
      }
    }
    if (at->offset == run.count) *at = {at->run + 1, 0, at->item};
  }
}

void WorkScheduler::LongestFirst(Cursor* at, std::size_t end) {
  if (at->item == end) return;
  FillQueue(LoadOf(sorted_[at->run].tiles));
  while (at->item < end) {
    const WorkRun& run = sorted_[at->run];
    const std::int64_t load = LoadOf(run.tiles);
    for (; at->offset < run.count && at->item < end; ++at->offset) {
      const std::int16_t cta = Pop();
      cta_[at->item++] = static_cast<std::uint16_t>(cta);
      load_[cta] += load;
      Push(cta);
    }
    if (at->offset == run.count) *at = {at->run + 1, 0, at->item};
  }
  EmptyQueue();
}

void WorkScheduler::FillQueue(std::int64_t longest) {
  const auto [least, most] = std::minmax_element(load_.begin(), load_.end());
  queue_base_ = *least;
  queue_front_ = 0;
  const std::int64_t spread = std::max(*most - queue_base_, longest) + 1;
  queue_shift_ = std::bit_width(static_cast<std::uint64_t>(spread / kQuantaPerSpread));
  for (std::int64_t cta = 0; cta < num_ctas_; ++cta) Push(static_cast<std::int16_t>(cta));
}

void WorkScheduler::EmptyQueue() {
  std::fill(bucket_head_.begin(), bucket_head_.end(), std::int16_t{-1});
  std::fill(occupied_.begin(), occupied_.end(), 0);
}

inline void WorkScheduler::Push(std::int16_t cta) {
  const std::size_t bucket =
      static_cast<std::size_t>((load_[cta] - queue_base_) >> queue_shift_) % kQueueBuckets;
  queue_next_[cta] = -1;
  if (bucket_head_[bucket] < 0) {
    bucket_head_[bucket] = cta;
    occupied_[bucket / 64] |= std::uint64_t{1} << bucket % 64;
  } else {
    queue_next_[bucket_tail_[bucket]] = cta;
  }
  bucket_tail_[bucket] = cta;
}

inline std::int16_t WorkScheduler::Pop() {
  std::size_t bucket = queue_front_;
  if (bucket_head_[bucket] < 0) {
    std::size_t word = bucket / 64;
    std::uint64_t bits = occupied_[word] & (~std::uint64_t{0} << bucket % 64);
    while (bits == 0) {
      word = (word + 1) % (kQueueBuckets / 64);
      bits = occupied_[word];
    }
    bucket = word * 64 + static_cast<std::size_t>(std::countr_zero(bits));
    queue_front_ = bucket;
  }
  const std::int16_t cta = bucket_head_[bucket];
  bucket_head_[bucket] = queue_next_[cta];
  if (queue_next_[cta] < 0) occupied_[bucket / 64] &= ~(std::uint64_t{1} << bucket % 64);
  return cta;
}

bool WorkScheduler::IsBalanced() const {
  std::int64_t sum = 0;
  std::int64_t most = 0;
  for (const std::int64_t load : load_) {
    sum += load;
    most = std::max(most, load);
  }
  const std::int64_t bound = std::max(sum / num_ctas_, LoadOf(sorted_.front().tiles));
  return most - bound <= bound / 64;
}

void WorkScheduler::OrderByCta() {
  std::int32_t* const start = next_.data();
  std::fill(next_.begin(), next_.end(), 0);
  for (const std::uint16_t cta : cta_) ++start[cta];
  std::int32_t sum = 0;
  for (std::size_t cta = 0; cta < next_.size(); ++cta) {
    const std::int32_t count = start[cta];
    start[cta] = indptr_[cta] = sum;
    sum += count;
  }
  order_.resize(num_items_);
  std::int32_t* const order = order_.data();
  const std::uint16_t* cta = cta_.data();
  for (const WorkRun& run : sorted_) {
    for (std::int32_t i = run.first; i < run.first + run.count; ++i) order[start[*cta++]++] = i;
  }
}

}  // namespace shplb::internal
