// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "shplb/budget.h"

namespace shplb {

/// Budgets and placement as one problem: what is limited is not the sum of densities but the work
/// of the slowest rank of each layer, since ranks meet after every layer.
struct BalanceAwareProblem {
  /// Objective kMinError. `total_density` only counts where `slowest_load` is empty. Under
  /// BudgetScope::kLayer every layer keeps its own limit; under kModel the layers share one sum.
  BudgetProblem budget;
  std::int64_t num_groups = 0;  // KV groups per layer, of num_heads / num_groups heads in a row
  std::int64_t num_ranks = 0;   // each holds num_groups / num_ranks groups of every layer
  /// [num_layers, num_groups], rank of every group, equal counts per rank: kept as it is. Empty:
  /// found together with the budgets.
  std::span<const std::int32_t> group_to_rank;
  /// [num_layers], summed densities of the slowest rank's heads, inert ones left out. Raised to
  /// what the floors need. Empty: what AllocateBudgets and then PlaceHeads (or the given placement)
  /// come to.
  std::span<const double> slowest_load;
};

struct BalanceAwareBudgets {
  std::vector<double> density;              // [num_layers, num_heads]
  std::vector<std::int32_t> group_to_rank;  // [num_layers, num_groups]
  std::vector<double> slowest_load;         // [num_layers], as in BalanceAwareProblem
  double mean_density = 0.0;                // over heads that are not inert
  double total_error = 0.0;                 // sum over heads, on the lower convex hulls
};

/// Least total error at a fixed sum over layers of the slowest rank's load.
///
/// For a given placement the exact optimum on a grid of 2^-40, by equal marginal gain over layer
/// ceilings: under a ceiling every rank fills its own heads from the steepest hull segment on, so a
/// layer's error is a convex function of its ceiling. O(S log S), S = segments.
/// Otherwise placement and ceilings take turns, from the placement of budgets solved apart on: each
/// layer looks for the split with the largest gain net of the marginal price of its ceiling, then
/// at its present ceiling, among all splits up to 1000, by best exchanges above, not at all above
/// 64 groups. It ends when no turn helps, so the error is never above that of the two solved apart.
BalanceAwareBudgets AllocateBalanceAware(const BalanceAwareProblem& problem);

}  // namespace shplb
