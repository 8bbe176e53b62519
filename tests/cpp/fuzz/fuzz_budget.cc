// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <vector>

#include "input.h"
#include "shplb/budget.h"

namespace shplb::fuzz {
namespace {

double TakeValue(Input* input) {
  const auto byte = input->Take<std::uint8_t>();
  if (byte >= 252) return input->Take<double>();
  return byte / 251.0;
}

}  // namespace

void Run(Input* input) {
  BudgetProblem p;
  p.num_layers = input->Extent(4);
  p.num_heads = input->Extent(6);
  p.objective = static_cast<BudgetObjective>(input->Take<std::uint8_t>() % 4);
  p.scope = static_cast<BudgetScope>(input->Take<std::uint8_t>() % 2);
  const auto points = 1 + input->Take<std::uint8_t>() % 6;
  std::vector<double> densities;
  double density = 0;
  for (int i = 1; i < points; ++i) densities.push_back(density += TakeValue(input) / points);
  densities.push_back(1.0);
  p.total_density = TakeValue(input);
  p.min_density = TakeValue(input) * p.total_density;
  const std::size_t heads = input->Product(p.num_layers, p.num_heads) % 64;
  std::vector<double> curves(heads * densities.size()), zero(input->Bit() ? heads : 0);
  std::vector<std::uint8_t> inert(input->Bit() ? heads : 0);
  for (double& value : curves) value = TakeValue(input);
  for (double& value : zero) value = TakeValue(input);
  for (std::uint8_t& value : inert) value = input->Bit();
  p.curves = curves;
  p.densities = densities;
  p.zero = zero;
  p.inert = inert;
  const Budgets budgets = AllocateBudgets(p);
  Expect(std::abs(budgets.mean_density - p.total_density) < 1e-9, "the mean is the total");
  for (const double d : budgets.density) {
    Expect(d >= p.min_density && d <= 1.0, "densities lie between floor and 1");
  }
}

}  // namespace shplb::fuzz
