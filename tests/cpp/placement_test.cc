// SPDX-License-Identifier: Apache-2.0
#include "shplb/placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "shplb/error.h"

namespace shplb {
namespace {

PlacementProblem OneLayer(const std::vector<std::int64_t>& loads, std::int64_t num_ranks) {
  PlacementProblem problem;
  problem.num_layers = 1;
  problem.num_units = static_cast<std::int64_t>(loads.size());
  problem.loads = loads;
  problem.num_ranks = num_ranks;
  return problem;
}

std::int64_t Largest(const Placement& placement) {
  return *std::max_element(placement.rank_loads.begin(), placement.rank_loads.end());
}

/// Smallest possible largest load with equal counts, over all bit masks.
std::int64_t BruteForceTwoRanks(const std::vector<std::int64_t>& loads) {
  std::int64_t best = std::int64_t{1} << 62;
  for (unsigned mask = 0; mask < 1u << loads.size(); ++mask) {
    if (2 * static_cast<std::size_t>(__builtin_popcount(mask)) != loads.size()) continue;
    std::int64_t sums[2] = {0, 0};
    for (std::size_t i = 0; i < loads.size(); ++i) sums[mask >> i & 1] += loads[i];
    best = std::min(best, std::max(sums[0], sums[1]));
  }
  return best;
}

TEST(Placement, AutoIsExactOnEightUnits) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 500; ++round) {
    std::vector<std::int64_t> loads(8);
    for (auto& load : loads) load = static_cast<std::int64_t>(random() % 1000);
    EXPECT_EQ(Largest(PlaceHeads(OneLayer(loads, 2))), BruteForceTwoRanks(loads));
  }
}

TEST(Placement, CountingBound) {
  // Five heavy units on four ranks: two share a rank.
  const std::vector<std::int64_t> loads{10, 10, 10, 10, 10, 1, 1, 1};
  const Placement placement = PlaceHeads(OneLayer(loads, 4));
  EXPECT_EQ(placement.lower_bound[0], 20);
  EXPECT_EQ(Largest(placement), 20);
}

TEST(Placement, LargestLoadsDoNotOverflow) {
  const std::vector<std::int64_t> loads(4, std::int64_t{1} << 60);
  EXPECT_EQ(Largest(PlaceHeads(OneLayer(loads, 2))), std::int64_t{1} << 61);
}

TEST(Placement, RefusesRanksThatDoNotDivide) {
  const std::vector<std::int64_t> loads(4, 1);
  EXPECT_THROW(PlaceHeads(OneLayer(loads, 3)), InvalidArgument);
}

}  // namespace
}  // namespace shplb
