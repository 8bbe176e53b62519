// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace shplb::internal {

__extension__ typedef __int128 int128;

/// One layer's problem, and the scratch of its solvers, reused over layers.
/// `load` is sorted in descending order; solvers assign to `rank` by sorted position.
struct LayerPlacement {
  std::int64_t num_ranks = 0;
  std::int64_t capacity = 0;             // units per rank at most
  bool equal_count = true;               // every rank has exactly `capacity` units
  std::vector<std::int64_t> load;        // [num_units], descending
  std::vector<std::int32_t> unit;        // [num_units], original index, ties ascending
  std::vector<std::int32_t> rank;        // [num_units], the answer
  std::vector<std::int64_t> rank_load;   // [num_ranks]
  std::vector<std::int32_t> rank_count;  // [num_ranks]
  std::vector<std::uint64_t> packed;     // scratch of SortUnits
  std::vector<std::pair<std::int64_t, std::int32_t>> key;  // and where those don't fit
  std::vector<std::int64_t> open_load;                     // scratch of PlaceLongestFirst
  std::vector<std::int32_t> name;                          // scratch of naming the ranks
  std::vector<std::int32_t> member;                        // scratch of ImproveBySwaps
  std::vector<std::int64_t> prefix;                        // scratch of CountingBound
};

/// Sets `load` and `unit`, which have the size of `loads`.
void SortUnits(std::span<const std::int64_t> loads, LayerPlacement* layer);

/// No assignment has a smaller largest rank load than the mean, or than the longest unit with the
/// company it must have.
std::int64_t MeanBound(const LayerPlacement& layer);

/// Raises `bound` by counts of the longest units (pigeonhole over several ranks at once); dearer.
std::int64_t CountingBound(LayerPlacement* layer, std::int64_t bound);

/// Longest first onto the least loaded rank with room; ties to the lower rank.
void PlaceLongestFirst(LayerPlacement* layer);

/// Deals units in sorted order forth and back over the ranks.
void PlaceSnake(LayerPlacement* layer);

/// Blocks of consecutive units (in original order).
void PlaceContiguous(LayerPlacement* layer);

/// Moves and swaps units between the most loaded rank and another while that makes the largest
/// load of the two smaller. Stops at `bound`.
void ImproveBySwaps(LayerPlacement* layer, std::int64_t bound);

/// Branch and bound from the assignment in `layer`; returns false if `max_nodes` did not suffice
/// (the layer then holds the best assignment found).
bool PlaceExact(LayerPlacement* layer, std::int64_t bound, std::int64_t max_nodes);

/// Recomputes rank_load and rank_count from rank.
void CountRanks(LayerPlacement* layer);

}  // namespace shplb::internal
