// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace shplb::internal {

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
};

/// No assignment has a smaller largest rank load.
std::int64_t LowerBound(const LayerPlacement& layer);

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
