// SPDX-License-Identifier: Apache-2.0
#include "work_schedule.h"

#include <algorithm>
#include <bit>

namespace shplb::internal {

namespace {

constexpr std::int32_t kSortBits = 12;
constexpr std::int32_t kSortBuckets = 1 << kSortBits;
/// The spread of loads in the queue stays below half of the ring, so order is never ambiguous.
constexpr std::int64_t kQueueBuckets = 4096;
constexpr std::int64_t kQuantaPerSpread = 1024;
/// Rows of one item per CTA that longest-first handles; above, the first rows are dealt.
constexpr std::int64_t kLongestFirstRows = 12;
constexpr std::int64_t kTailRows = 6;

}  // namespace

WorkScheduler::WorkScheduler(std::int64_t num_ctas, std::int64_t item_ns, std::int64_t tile_ns)
    : num_ctas_(num_ctas),
      item_ns_(item_ns),
      tile_ns_(tile_ns),
      histogram_(kSortBuckets),
      indptr_(static_cast<std::size_t>(num_ctas) + 1),
      load_(static_cast<std::size_t>(num_ctas)),
      count_(static_cast<std::size_t>(num_ctas)),
      bucket_head_(kQueueBuckets, -1),
      bucket_tail_(kQueueBuckets, -1),
      queue_next_(static_cast<std::size_t>(num_ctas), -1),
      occupied_(kQueueBuckets / 64) {
  next_.reserve(indptr_.size());
}

void WorkScheduler::Schedule(std::span<const std::int32_t> tiles, WorkMethod method) {
  Sort(tiles);
  cta_.resize(tiles.size());
  std::fill(load_.begin(), load_.end(), 0);
  const auto num_items = static_cast<std::int64_t>(tiles.size());
  if (method == WorkMethod::kSnake) {
    Deal(tiles, tiles.size());
  } else if (method == WorkMethod::kLongestFirst || num_items <= kLongestFirstRows * num_ctas_) {
    LongestFirst(tiles, 0);
  } else {
    // An even number of rows, so that the dealt part ends where it began.
    const std::int64_t rows = (num_items / num_ctas_ - kTailRows) / 2 * 2;
    const auto dealt = static_cast<std::size_t>(rows * num_ctas_);
    Deal(tiles, dealt);
    LongestFirst(tiles, dealt);
    if (!IsBalanced(tiles)) {
      std::fill(load_.begin(), load_.end(), 0);
      LongestFirst(tiles, 0);
    }
  }
  CountItems();
}

void WorkScheduler::Sort(std::span<const std::int32_t> tiles) {
  sorted_.resize(tiles.size());
  std::int32_t largest = 0;
  for (const std::int32_t t : tiles) largest = std::max(largest, t);
  if (largest < kSortBuckets) {
    SortPass(tiles, 0, largest + 1, {}, sorted_);
    return;
  }
  half_sorted_.resize(tiles.size());
  SortPass(tiles, 0, kSortBuckets, {}, half_sorted_);
  SortPass(tiles, kSortBits, (largest >> kSortBits) + 1, half_sorted_, sorted_);
}

/// Stable counting sort, descending, by `buckets` values of the key bits above `shift`. An empty
/// `from` stands for 0, 1, 2, ...
void WorkScheduler::SortPass(std::span<const std::int32_t> tiles, int shift, std::int32_t buckets,
                             std::span<const std::int32_t> from, std::span<std::int32_t> to) {
  constexpr std::int32_t kMask = kSortBuckets - 1;
  std::int32_t* const start = histogram_.data();
  std::fill(start, start + buckets, 0);
  for (const std::int32_t t : tiles) ++start[t >> shift & kMask];
  std::int32_t sum = 0;
  for (std::int32_t bucket = buckets - 1; bucket >= 0; --bucket) {
    const std::int32_t count = start[bucket];
    start[bucket] = sum;
    sum += count;
  }
  const auto num_items = static_cast<std::int32_t>(tiles.size());
  if (from.empty()) {
    for (std::int32_t i = 0; i < num_items; ++i) to[start[tiles[i] >> shift & kMask]++] = i;
  } else {
    for (const std::int32_t i : from) to[start[tiles[i] >> shift & kMask]++] = i;
  }
}

void WorkScheduler::Deal(std::span<const std::int32_t> tiles, std::size_t end) {
  const auto ctas = static_cast<std::size_t>(num_ctas_);
  std::size_t i = 0;
  for (bool back = false; i < end; back = !back) {
    const std::size_t row = std::min(ctas, end - i);
    for (std::size_t j = 0; j < row; ++j, ++i) {
      const std::size_t cta = back ? ctas - 1 - j : j;
      cta_[i] = static_cast<std::uint16_t>(cta);
      load_[cta] += LoadOf(tiles[sorted_[i]]);
    }
  }
}

void WorkScheduler::LongestFirst(std::span<const std::int32_t> tiles, std::size_t begin) {
  if (begin == sorted_.size()) return;
  const auto [least, most] = std::minmax_element(load_.begin(), load_.end());
  const std::int64_t base = *least;
  const std::int64_t spread = std::max(*most - base, LoadOf(tiles[sorted_[begin]])) + 1;
  const int shift = std::max<int>(
      0, static_cast<int>(std::bit_width(static_cast<std::uint64_t>(spread / kQuantaPerSpread))));
  std::int16_t* const head = bucket_head_.data();
  std::int16_t* const tail = bucket_tail_.data();
  const auto push = [&](std::int16_t cta) {
    const auto bucket = static_cast<std::size_t>((load_[cta] - base) >> shift) % kQueueBuckets;
    queue_next_[cta] = -1;
    if (head[bucket] < 0) {
      head[bucket] = cta;
      occupied_[bucket / 64] |= std::uint64_t{1} << bucket % 64;
    } else {
      queue_next_[tail[bucket]] = cta;
    }
    tail[bucket] = cta;
  };
  for (std::int64_t cta = 0; cta < num_ctas_; ++cta) push(static_cast<std::int16_t>(cta));
  std::size_t bucket = 0;
  for (std::size_t i = begin; i < sorted_.size(); ++i) {
    if (head[bucket] < 0) {
      std::size_t word = bucket / 64;
      std::uint64_t bits = occupied_[word] & (~std::uint64_t{0} << bucket % 64);
      while (bits == 0) {
        word = (word + 1) % occupied_.size();
        bits = occupied_[word];
      }
      bucket = word * 64 + static_cast<std::size_t>(std::countr_zero(bits));
    }
    const std::int16_t cta = head[bucket];
    head[bucket] = queue_next_[cta];
    if (head[bucket] < 0) occupied_[bucket / 64] &= ~(std::uint64_t{1} << bucket % 64);
    cta_[i] = static_cast<std::uint16_t>(cta);
    load_[cta] += LoadOf(tiles[sorted_[i]]);
    push(cta);
  }
  std::fill(bucket_head_.begin(), bucket_head_.end(), std::int16_t{-1});
  std::fill(occupied_.begin(), occupied_.end(), 0);
}

bool WorkScheduler::IsBalanced(std::span<const std::int32_t> tiles) const {
  std::int64_t sum = 0;
  std::int64_t most = 0;
  for (const std::int64_t load : load_) {
    sum += load;
    most = std::max(most, load);
  }
  const std::int64_t bound = std::max(sum / num_ctas_, LoadOf(tiles[sorted_.front()]));
  return most - bound <= bound / 64;
}

void WorkScheduler::CountItems() {
  std::fill(count_.begin(), count_.end(), 0);
  for (const std::uint16_t cta : cta_) ++count_[cta];
  indptr_[0] = 0;
  for (std::size_t cta = 0; cta < count_.size(); ++cta) {
    indptr_[cta + 1] = indptr_[cta] + count_[cta];
  }
}

}  // namespace shplb::internal
