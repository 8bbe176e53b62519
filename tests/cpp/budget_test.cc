// SPDX-License-Identifier: Apache-2.0
#include "shplb/budget.h"

#include <gtest/gtest.h>

#include <vector>

#include "shplb/error.h"

namespace shplb {
namespace {

const std::vector<double> kDensities{0.25, 0.5, 1.0};

BudgetProblem TwoHeads(const std::vector<double>& curves, BudgetObjective objective) {
  BudgetProblem problem;
  problem.num_layers = 1;
  problem.num_heads = 2;
  problem.curves = curves;
  problem.densities = kDensities;
  problem.total_density = 0.5;
  problem.objective = objective;
  return problem;
}

TEST(Budget, MinErrorFollowsTheSteepestSegments) {
  const std::vector<double> curves{8, 4, 0, 1, 0.5, 0};
  const Budgets budgets = AllocateBudgets(TwoHeads(curves, BudgetObjective::kMinError));
  EXPECT_EQ(budgets.density, (std::vector<double>{1.0, 0.0}));
  EXPECT_DOUBLE_EQ(budgets.mean_density, 0.5);
  EXPECT_DOUBLE_EQ(*budgets.total_error, 1.5);
  EXPECT_FALSE(budgets.worst_recovery.has_value());
}

TEST(Budget, MaxMinLevelsRecovery) {
  const std::vector<double> curves{0.2, 0.4, 1.0, 0.8, 0.9, 1.0};
  const Budgets budgets = AllocateBudgets(TwoHeads(curves, BudgetObjective::kMaxMin));
  // Level r: 0.5 + (r - 0.4) / 1.2 for head 0, r / 3.2 for head 1, together 1.
  const double level = (1.0 - 0.5 + 0.4 / 1.2) / (1 / 1.2 + 1 / 3.2);
  EXPECT_NEAR(*budgets.worst_recovery, level, 1e-9);
  EXPECT_NEAR(budgets.density[1], level / 3.2, 1e-9);
}

TEST(Budget, InertHeadsGetTheFloor) {
  const std::vector<double> curves{0.2, 0.4, 1.0, 0.0, 0.0, 0.0};
  const std::vector<std::uint8_t> inert{0, 1};
  BudgetProblem problem = TwoHeads(curves, BudgetObjective::kMaxMin);
  problem.inert = inert;
  problem.min_density = 0.125;
  const Budgets budgets = AllocateBudgets(problem);
  EXPECT_EQ(budgets.density, (std::vector<double>{0.5, 0.125}));
  EXPECT_EQ(budgets.mean_density, 0.5);
}

TEST(Budget, RefusesBadTotals) {
  const std::vector<double> curves{0.2, 0.4, 1.0, 0.8, 0.9, 1.0};
  BudgetProblem problem = TwoHeads(curves, BudgetObjective::kMaxMin);
  problem.total_density = 0.0;
  EXPECT_THROW(AllocateBudgets(problem), InvalidArgument);
}

}  // namespace
}  // namespace shplb
