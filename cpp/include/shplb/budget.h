// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace shplb {

enum class BudgetObjective { kMinError, kMaxMin, kMaxMean, kUniform };
enum class BudgetScope { kModel, kLayer };

/// Profiled curves of every query head, and how much density there is to give away.
/// All spans are row-major and only read during the call.
struct BudgetProblem {
  std::int64_t num_layers = 0;
  std::int64_t num_heads = 0;
  /// [num_layers, num_heads, num_points]. kMinError: output error, >= 0. Otherwise recovery in
  /// [0, 1]. A point that is worse than a point at lower density counts as equal to it.
  std::span<const double> curves;
  /// [num_points], strictly ascending in (0, 1] by at least 1e-9, the last is 1.
  std::span<const double> densities;
  /// kMinError only: [num_layers, num_heads], error at density 0. Empty: the first segment of each
  /// curve goes on in a straight line. Recovery at density 0 is 0.
  std::span<const double> zero;
  /// [num_layers, num_heads], nonzero for padded heads, which get min_density and count nowhere.
  /// Empty: none.
  std::span<const std::uint8_t> inert;
  /// Mean over the heads that are not inert, in (0, 1].
  double total_density = 0.0;
  /// Floor of every head, in [0, total_density].
  double min_density = 0.0;
  BudgetScope scope = BudgetScope::kModel;
  BudgetObjective objective = BudgetObjective::kMinError;
};

struct Budgets {
  std::vector<double> density;  // [num_layers, num_heads]
  double mean_density = 0.0;    // over heads that are not inert
  /// Least recovery of a head that is not inert; absent for kMinError.
  std::optional<double> worst_recovery;
  /// Sum over heads of the error on the curve's lower convex hull; present for kMinError only.
  std::optional<double> total_error;
};

/// Optimal density per head under a fixed mean density.
///
/// kMinError, kMaxMean: exact optimum over the convex hull of every curve on [min_density, 1], by
/// equal marginal gain (Everett 1963; Fox 1966). O(S log S), S = segments.
/// kMaxMin: leximin, by water filling on the curves themselves; a flat stretch that cannot be
/// crossed by all heads standing at it is crossed by those with the shortest ones.
/// The result is exact on a grid of 2^-40 in density and in value, and the same bytes everywhere.
Budgets AllocateBudgets(const BudgetProblem& problem);

}  // namespace shplb
