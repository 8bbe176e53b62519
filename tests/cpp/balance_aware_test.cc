// SPDX-License-Identifier: Apache-2.0
#include "shplb/balance_aware.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "sample.h"
#include "shplb/error.h"

namespace shplb {
namespace {

const std::vector<double> kDensities{0.5, 1.0};

/// One layer, one head per group; the curves are straight, so slopes are the errors at density 0.
BalanceAwareProblem Straight(const std::vector<double>& curves, std::int64_t num_ranks) {
  BalanceAwareProblem p;
  p.budget.num_layers = 1;
  p.budget.num_heads = static_cast<std::int64_t>(curves.size() / kDensities.size());
  p.budget.curves = curves;
  p.budget.densities = kDensities;
  p.num_groups = p.budget.num_heads;
  p.num_ranks = num_ranks;
  return p;
}

double Sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

TEST(BalanceAware, TheIdleRankFillsUpForFree) {
  // Slopes 8 and 2. Apart, at a mean of 0.5, the steep head takes everything.
  const std::vector<double> curves{4, 0, 1, 0};
  BalanceAwareProblem p = Straight(curves, 2);
  p.budget.total_density = 0.5;
  const BalanceAwareBudgets budgets = AllocateBalanceAware(p);
  EXPECT_EQ(budgets.density, (std::vector<double>{1.0, 1.0}));
  EXPECT_EQ(budgets.slowest_load, (std::vector<double>{1.0}));
  EXPECT_EQ(budgets.total_error, 0.0);
  EXPECT_EQ(budgets.mean_density, 1.0);
}

TEST(BalanceAware, LayersShareTheSumByMarginalGain) {
  // Two layers of two ranks: the second layer gains 3 + 3 per unit of its ceiling, the first 4 + 1.
  const std::vector<double> curves{2, 0, 0.5, 0, 1.5, 0, 1.5, 0};
  const std::vector<double> limit{0.75, 0.0};
  const std::vector<std::int32_t> ranks{0, 1, 1, 0};
  BalanceAwareProblem p = Straight(curves, 2);
  p.budget.num_layers = 2;
  p.budget.num_heads = p.num_groups = 2;
  p.budget.total_density = 0.5;
  p.slowest_load = limit;
  p.group_to_rank = ranks;
  EXPECT_EQ(AllocateBalanceAware(p).density, (std::vector<double>{0, 0, 0.75, 0.75}));
  p.budget.scope = BudgetScope::kLayer;
  const BalanceAwareBudgets apart = AllocateBalanceAware(p);
  EXPECT_EQ(apart.density, (std::vector<double>{0.75, 0.75, 0, 0}));
  EXPECT_EQ(apart.slowest_load, limit);
  EXPECT_EQ(apart.group_to_rank, ranks);
}

TEST(BalanceAware, AGivenLimitIsRaisedToTheFloors) {
  const std::vector<double> curves{4, 0, 1, 0};
  const std::vector<double> nothing{0.0};
  BalanceAwareProblem p = Straight(curves, 1);
  p.budget.total_density = 0.5;
  p.budget.min_density = 0.25;
  p.slowest_load = nothing;
  const BalanceAwareBudgets budgets = AllocateBalanceAware(p);
  EXPECT_EQ(budgets.density, (std::vector<double>{0.25, 0.25}));
  EXPECT_EQ(budgets.slowest_load, (std::vector<double>{0.5}));
}

TEST(BalanceAware, InertHeadsAreNoLoad) {
  const std::vector<double> curves{4, 0, 0, 0, 1, 0, 2, 0};
  const std::vector<std::uint8_t> inert{0, 1, 0, 0};
  BalanceAwareProblem p = Straight(curves, 2);
  p.budget.inert = inert;
  p.budget.total_density = 2.0 / 3.0;
  p.budget.min_density = 0.125;
  const BalanceAwareBudgets budgets = AllocateBalanceAware(p);
  // Head 0 shares its rank with the padded one; the other two fill theirs.
  EXPECT_EQ(budgets.density[0], 1.0);
  EXPECT_EQ(budgets.density[1], 0.125);
  EXPECT_EQ(budgets.group_to_rank, (std::vector<std::int32_t>{0, 0, 1, 1}));
}

TEST(BalanceAware, NeverWorseThanApartAndStable) {
  for (std::uint64_t seed = 1; seed <= 300; ++seed) {
    sample::Random random(seed);
    BalanceAwareProblem p;
    p.num_ranks = 1 + random.Below(4);
    p.num_groups = p.num_ranks * (1 + random.Below(4));
    p.budget.num_layers = 1 + random.Below(3);
    p.budget.num_heads = p.num_groups * (1 + random.Below(3));
    std::vector<double> curves;
    for (std::int64_t i = 0; i < p.budget.num_layers * p.budget.num_heads; ++i) {
      curves.push_back(static_cast<double>(random.Skewed(12)));
      curves.push_back(curves.back() * static_cast<double>(random.Below(100)) / 100);
    }
    p.budget.curves = curves;
    p.budget.densities = kDensities;
    p.budget.scope = static_cast<BudgetScope>(random.Below(2));
    p.budget.total_density = static_cast<double>(1 + random.Below(100)) / 100;
    const Budgets apart = AllocateBudgets(p.budget);
    const BalanceAwareBudgets together = AllocateBalanceAware(p);
    EXPECT_LE(together.total_error, *apart.total_error * (1 + 1e-9) + 1e-9) << seed;
    // With the placement that was found as a given one, the limit is met again.
    BalanceAwareProblem fixed = p;
    fixed.group_to_rank = together.group_to_rank;
    fixed.slowest_load = together.slowest_load;
    const BalanceAwareBudgets again = AllocateBalanceAware(fixed);
    EXPECT_NEAR(again.total_error, together.total_error, 1e-6 * (1 + together.total_error));
    EXPECT_NEAR(Sum(again.slowest_load), Sum(together.slowest_load), 1e-9);
  }
}

TEST(BalanceAware, ManyGroupsAreSearchedByExchanges) {
  sample::Random random(5);
  BalanceAwareProblem p;
  p.num_ranks = 4;
  p.num_groups = p.budget.num_heads = 16;  // 2,627,625 splits
  p.budget.num_layers = 2;
  std::vector<double> curves;
  for (int i = 0; i < 32; ++i) {
    curves.push_back(static_cast<double>(random.Skewed(12)));
    curves.push_back(0);
  }
  p.budget.curves = curves;
  p.budget.densities = kDensities;
  p.budget.total_density = 0.3;
  const BalanceAwareBudgets found = AllocateBalanceAware(p);
  BalanceAwareProblem fixed = p;
  std::vector<std::int32_t> contiguous(32);
  for (std::size_t i = 0; i < contiguous.size(); ++i) {
    contiguous[i] = static_cast<std::int32_t>(i % 16 / 4);
  }
  fixed.group_to_rank = contiguous;
  fixed.slowest_load = found.slowest_load;
  EXPECT_LT(found.total_error, 0.99 * AllocateBalanceAware(fixed).total_error);
}

TEST(BalanceAware, RefusesWhatItCannotSolve) {
  const std::vector<double> curves{4, 0, 1, 0};
  const std::vector<std::int32_t> crowded{0, 0};
  const std::vector<std::int32_t> unknown{0, 2};
  const std::vector<double> negative{-1.0};
  BalanceAwareProblem p = Straight(curves, 2);
  p.budget.total_density = 0.5;
  for (const auto change : std::vector<void (*)(BalanceAwareProblem*)>{
           [](BalanceAwareProblem* q) { q->budget.objective = BudgetObjective::kMaxMin; },
           [](BalanceAwareProblem* q) { q->num_groups = 3; },
           [](BalanceAwareProblem* q) { q->num_groups = 0; },
           [](BalanceAwareProblem* q) { q->num_ranks = 3; },
           [](BalanceAwareProblem* q) { q->num_ranks = 0; }}) {
    BalanceAwareProblem bad = p;
    change(&bad);
    EXPECT_THROW(AllocateBalanceAware(bad), InvalidArgument);
  }
  BalanceAwareProblem bad = p;
  bad.group_to_rank = crowded;
  EXPECT_THROW(AllocateBalanceAware(bad), InvalidArgument);
  bad.group_to_rank = unknown;
  EXPECT_THROW(AllocateBalanceAware(bad), InvalidArgument);
  bad = p;
  bad.slowest_load = negative;
  EXPECT_THROW(AllocateBalanceAware(bad), InvalidArgument);
}

}  // namespace
}  // namespace shplb
