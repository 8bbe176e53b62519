// SPDX-License-Identifier: Apache-2.0
#include "shplb/replica_placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "sample.h"
#include "shplb/error.h"

namespace shplb {
namespace {

ReplicaProblem OneLayer(const std::vector<std::int64_t>& loads, std::int64_t num_ranks,
                        std::int64_t num_replicas) {
  ReplicaProblem problem;
  problem.num_layers = 1;
  problem.num_units = static_cast<std::int64_t>(loads.size());
  problem.loads = loads;
  problem.num_ranks = num_ranks;
  problem.num_replicas = num_replicas;
  return problem;
}

std::int64_t Largest(const std::vector<std::int64_t>& loads) {
  return *std::max_element(loads.begin(), loads.end());
}

/// Largest mean over sets of ranks of the work that no other rank can do: what the best division
/// comes to, by duality.
std::int64_t DualOptimum(const std::vector<std::int64_t>& loads,
                         const std::vector<std::int32_t>& slots, std::int64_t num_ranks) {
  const std::size_t per_rank = slots.size() / static_cast<std::size_t>(num_ranks);
  std::int64_t best = 0;
  for (unsigned set = 1; set < 1u << num_ranks; ++set) {
    std::int64_t sum = 0;
    for (std::size_t unit = 0; unit < loads.size(); ++unit) {
      unsigned ranks = 0;
      for (std::size_t i = 0; i < slots.size(); ++i) {
        if (slots[i] == static_cast<std::int32_t>(unit)) ranks |= 1u << (i / per_rank);
      }
      if ((ranks & ~set) == 0) sum += loads[unit];
    }
    const std::int64_t size = __builtin_popcount(set);
    best = std::max(best, (sum + size - 1) / size);
  }
  return best;
}

TEST(ReplicaPlacement, DivisionMeetsItsDual) {
  sample::Random random(3);
  for (int round = 0; round < 2000; ++round) {
    const std::int64_t ranks = 2 + random.Below(5);
    const std::int64_t per_rank = 1 + random.Below(3);
    std::vector<std::int64_t> loads(static_cast<std::size_t>(ranks * per_rank));
    for (auto& load : loads) load = random.Skewed(30);
    ReplicaProblem problem = OneLayer(loads, ranks, random.Below(per_rank + 1));
    problem.method = ReplicaMethod::kGreedy;
    const ReplicaPlacement placement = PlaceReplicas(problem);
    EXPECT_EQ(Largest(placement.rank_loads), DualOptimum(loads, placement.slot_units, ranks));
    EXPECT_LE(placement.lower_bound[0], Largest(placement.rank_loads));
  }
}

TEST(ReplicaPlacement, LargestLoadsDoNotOverflow) {
  const std::vector<std::int64_t> loads(4, std::int64_t{1} << 60);
  EXPECT_EQ(Largest(PlaceReplicas(OneLayer(loads, 2, 1)).rank_loads), std::int64_t{1} << 61);
}

TEST(ReplicaPlacement, RefusesThirdCopies) {
  const std::vector<std::int64_t> loads(4, 1);
  EXPECT_THROW(PlaceReplicas(OneLayer(loads, 4, 2)), InvalidArgument);
  EXPECT_THROW(PlaceReplicas(OneLayer(loads, 1, 1)), InvalidArgument);
}

}  // namespace
}  // namespace shplb
