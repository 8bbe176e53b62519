// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "budget_curve.h"
#include "shplb/budget.h"

namespace shplb::internal {

/// Nearest point of the grid of 2^-40.
std::int64_t OnGrid(double value);

/// The caller's own number where the grid point stands for one, so that no rounding shows.
double FromGrid(const BudgetProblem& p, std::int64_t density);

bool IsInert(const BudgetProblem& p, std::int64_t head);

/// Throws InvalidArgument for a problem that AllocateBudgets does not accept.
void ValidateBudgets(const BudgetProblem& p);

/// Heads that share one total.
struct BudgetGroup {
  std::vector<std::int64_t> heads;  // not inert, ascending
  std::vector<GainCurve> curves;    // of those heads, from the floor on
  double scale = 0.0;               // largest error of those heads
};

/// The heads [first, last) of all layers in a row.
BudgetGroup MakeGroup(const BudgetProblem& p, std::int64_t first, std::int64_t last);

}  // namespace shplb::internal
