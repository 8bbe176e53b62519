// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace shplb {

enum class PlacementMethod { kAuto, kExact, kLptSwap, kLpt, kSnake, kContiguous };

/// Units (KV groups) of every layer, to be placed on the ranks of one tensor-parallel group.
struct PlacementProblem {
  std::int64_t num_layers = 0;
  std::int64_t num_units = 0;
  /// [num_layers, num_units], ns (or any integer unit), >= 0, sum of a layer <= 2^62.
  std::span<const std::int64_t> loads;
  std::int64_t num_ranks = 0;
  /// Every rank gets num_units / num_ranks units; otherwise any number, also none.
  bool equal_count = true;
  PlacementMethod method = PlacementMethod::kAuto;
};

struct Placement {
  std::vector<std::int32_t> head_to_rank;  // [num_layers, num_units], in [0, num_ranks)
  std::vector<std::int64_t> rank_loads;    // [num_layers, num_ranks]
  std::vector<double> imbalance;           // [num_layers], max / mean; 1 if all loads are 0
  std::vector<std::int64_t> lower_bound;   // [num_layers], on the largest rank load
};

/// Largest accepted extents, far above any model; they bound the time of one call.
inline constexpr std::int64_t kMaxPlacementLayers = std::int64_t{1} << 20;
inline constexpr std::int64_t kMaxUnits = 4096;
inline constexpr std::int64_t kMaxRanks = 1024;

/// Places the units of each layer so that the largest rank load is small.
///
/// kAuto: exact up to 8 units, and wherever longest-first with swaps meets the lower bound; else
/// the latter. kExact: branch and bound; Infeasible if the bounded search does not finish.
/// Ranks are named in the order of their lowest unit (kContiguous, kSnake: as dealt), so equal
/// input gives equal bytes. Infeasible only for kExact; a num_ranks that does not divide num_units
/// is an InvalidArgument under equal_count.
Placement PlaceHeads(const PlacementProblem& problem);

/// Measured loads on an integer grid: the largest becomes 2^40, the others in proportion, rounded
/// to nearest; `unit` is what one integer stands for, so load = integer * unit up to rounding.
struct ScaledLoads {
  std::vector<std::int64_t> loads;
  double unit = 1.0;
};

/// Loads [num_layers, num_units] must be finite and >= 0.
ScaledLoads ScaleLoads(std::span<const double> loads, std::int64_t num_units);

}  // namespace shplb
