// SPDX-License-Identifier: Apache-2.0
#include "shplb/budget.h"

#include <algorithm>

#include "budget_group.h"

namespace shplb {

namespace {

using internal::BudgetGroup;
using internal::GainCurve;
using internal::IsInert;
using internal::kUnit;
using internal::OnGrid;

bool IsError(const BudgetProblem& p) { return p.objective == BudgetObjective::kMinError; }

std::vector<std::int64_t> Solve(const BudgetProblem& p, const BudgetGroup& group) {
  const std::int64_t each = OnGrid(p.total_density);
  const auto count = static_cast<std::int64_t>(group.heads.size());
  switch (p.objective) {
    case BudgetObjective::kUniform:
      return std::vector<std::int64_t>(group.heads.size(), each);
    case BudgetObjective::kMaxMin:
      return internal::MaximiseLeximin(group.curves, each * count);
    case BudgetObjective::kMinError:
    case BudgetObjective::kMaxMean:
      break;
  }
  return internal::MaximiseSum(group.curves, each * count);
}

void AddGroup(const BudgetProblem& p, std::int64_t first, std::int64_t last, Budgets* budgets) {
  const BudgetGroup group = internal::MakeGroup(p, first, last);
  if (group.heads.empty()) return;
  const std::vector<std::int64_t> density = Solve(p, group);
  for (std::size_t i = 0; i < group.heads.size(); ++i) {
    const double unit = static_cast<double>(kUnit);
    budgets->density[static_cast<std::size_t>(group.heads[i])] = internal::FromGrid(p, density[i]);
    if (IsError(p)) {
      const GainCurve hull = internal::ConcaveHull(group.curves[i]);
      *budgets->total_error += group.scale * (1.0 - internal::GainAt(hull, density[i]) / unit);
    } else {
      budgets->worst_recovery =
          std::min(*budgets->worst_recovery, internal::GainAt(group.curves[i], density[i]) / unit);
    }
  }
}

}  // namespace

Budgets AllocateBudgets(const BudgetProblem& problem) {
  internal::ValidateBudgets(problem);
  const std::int64_t heads = problem.num_layers * problem.num_heads;
  Budgets budgets;
  budgets.density.assign(static_cast<std::size_t>(heads), problem.min_density);
  if (IsError(problem)) {
    budgets.total_error = 0.0;
  } else {
    budgets.worst_recovery = 1.0;
  }
  const std::int64_t step = problem.scope == BudgetScope::kLayer ? problem.num_heads : heads;
  for (std::int64_t first = 0; first < heads; first += step) {
    AddGroup(problem, first, first + step, &budgets);
  }
  double sum = 0.0;
  std::int64_t count = 0;
  for (std::int64_t head = 0; head < heads; ++head) {
    if (IsInert(problem, head)) continue;
    sum += budgets.density[static_cast<std::size_t>(head)];
    ++count;
  }
  budgets.mean_density = sum / static_cast<double>(count);
  return budgets;
}

}  // namespace shplb
