// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <vector>

#include "input.h"
#include "shplb/balance_aware.h"

namespace shplb::fuzz {
namespace {

double TakeValue(Input* input) {
  const auto byte = input->Take<std::uint8_t>();
  if (byte >= 252) return input->Take<double>();
  return byte / 251.0;
}

double Sum(const std::vector<double>& values) {
  double sum = 0.0;
  for (const double value : values) sum += value;
  return sum;
}

}  // namespace

void Run(Input* input) {
  BalanceAwareProblem p;
  p.num_ranks = input->Extent(3);
  p.num_groups = input->Product(p.num_ranks, input->Count(3));
  p.budget.num_layers = input->Extent(3);
  p.budget.num_heads = input->Product(p.num_groups, input->Count(2));
  p.budget.scope = static_cast<BudgetScope>(input->Take<std::uint8_t>() % 2);
  const auto points = 1 + input->Take<std::uint8_t>() % 5;
  std::vector<double> densities;
  double density = 0;
  for (int i = 1; i < points; ++i) densities.push_back(density += TakeValue(input) / points);
  densities.push_back(1.0);
  p.budget.total_density = TakeValue(input);
  p.budget.min_density = TakeValue(input) * p.budget.total_density;
  const std::size_t heads = input->Product(p.budget.num_layers, p.budget.num_heads) % 64;
  const std::size_t groups = input->Product(p.budget.num_layers, p.num_groups) % 64;
  std::vector<double> curves(heads * densities.size()), zero(input->Bit() ? heads : 0);
  std::vector<std::uint8_t> inert(input->Bit() ? heads : 0);
  std::vector<std::int32_t> ranks(input->Bit() ? groups : 0);
  std::vector<double> loads(input->Bit() ? input->Product(p.budget.num_layers, 1) % 64 : 0);
  for (double& value : curves) value = TakeValue(input);
  for (double& value : zero) value = TakeValue(input);
  for (std::uint8_t& value : inert) value = input->Bit();
  for (std::int32_t& rank : ranks) rank = static_cast<std::int32_t>(input->Extent(3));
  for (double& load : loads) load = TakeValue(input);
  p.budget.curves = curves;
  p.budget.densities = densities;
  p.budget.zero = zero;
  p.budget.inert = inert;
  p.group_to_rank = ranks;
  p.slowest_load = loads;
  const BalanceAwareBudgets budgets = AllocateBalanceAware(p);
  for (const double d : budgets.density) {
    Expect(d >= p.budget.min_density && d <= 1.0, "densities lie between floor and 1");
  }
  for (const std::int32_t rank : budgets.group_to_rank) {
    Expect(rank >= 0 && rank < p.num_ranks, "ranks exist");
  }
  if (!loads.empty() && p.budget.min_density == 0.0) {
    Expect(Sum(budgets.slowest_load) <= Sum(loads) + 1e-9, "the limit is kept");
  }
  if (!loads.empty()) return;
  const Budgets apart = AllocateBudgets(p.budget);
  const double slack = 1e-9 * (*apart.total_error + static_cast<double>(heads));
  // Values of any size: an error below the grid of the largest one may be lost.
  double largest = 0.0;
  for (const double value : curves) largest = std::max(largest, value);
  for (const double value : zero) largest = std::max(largest, value);
  Expect(budgets.total_error <= *apart.total_error + slack + 1e-9 * largest, "never worse");
}

}  // namespace shplb::fuzz
