// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "leveller.h"

namespace shplb::internal {

/// Where a unit is; rank[1] < 0: it has no copy.
struct Seat {
  std::int32_t rank[2] = {-1, -1};

  bool copied() const { return rank[1] >= 0; }
  bool on(std::int32_t r) const { return rank[0] == r || rank[1] == r; }
};

/// One layer's problem, and the scratch of its solvers, reused over layers.
struct ReplicaLayer {
  std::int64_t num_ranks = 0;
  std::int64_t num_slots = 0;           // per rank
  std::int64_t num_copied = 0;          // units with two slots
  std::vector<std::int64_t> load;       // [num_units], descending
  std::vector<std::int32_t> unit;       // [num_units], original index, ties ascending
  std::vector<Seat> seat;               // [num_units], the answer, by sorted position
  std::vector<std::int64_t> rank_load;  // [num_ranks], of the last Evaluate
  std::vector<SharedLoad> shared;       // of the last Evaluate
  Leveller leveller;

  /// Largest rank load of the first `count` units as seated, best divided.
  std::int64_t Evaluate(std::size_t count);
  std::int64_t Evaluate() { return Evaluate(load.size()); }
};

/// Sets load and unit from `loads`.
void SortUnits(std::span<const std::int64_t> loads, ReplicaLayer* layer);

/// No placement has a smaller largest rank load.
std::int64_t ReplicaBound(const ReplicaLayer& layer);

/// EPLB's greedy: heaviest units copied; halves and wholes, longest first, onto the least loaded
/// rank with room.
void PlaceGreedily(ReplicaLayer* layer);

/// Best exchange of two slots, or of a copy for another unit's, until none helps or the load is
/// down to `bound`. Returns the largest load.
std::int64_t ImproveReplicas(ReplicaLayer* layer, std::int64_t bound);

/// Branch and bound below what `layer` holds; false if `max_nodes` did not suffice (the layer then
/// holds the best found).
bool SearchReplicas(ReplicaLayer* layer, std::int64_t bound, std::int64_t max_nodes);

}  // namespace shplb::internal
