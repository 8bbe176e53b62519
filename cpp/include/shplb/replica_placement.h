// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace shplb {

/// kAuto: local search, then branch and bound where that is short; kExact: until it is proven;
/// kGreedy: EPLB's, the heaviest units copied, halves and wholes longest-first.
enum class ReplicaMethod { kAuto, kExact, kGreedy };

/// Units (KV groups) of every layer, some of which two ranks hold and divide between them at will.
struct ReplicaProblem {
  std::int64_t num_layers = 0;
  std::int64_t num_units = 0;  // a multiple of num_ranks
  /// [num_layers, num_units], ns (or any integer unit), >= 0, sum of a layer <= 2^62.
  std::span<const std::int64_t> loads;
  std::int64_t num_ranks = 0;
  /// Slots that every rank has beyond num_units / num_ranks; at most that, so that no unit needs a
  /// third copy, and 0 on one rank.
  std::int64_t num_replicas = 0;
  ReplicaMethod method = ReplicaMethod::kAuto;
};

struct ReplicaPlacement {
  /// [num_layers, num_ranks, num_units / num_ranks + num_replicas]: unit in each slot, ascending.
  std::vector<std::int32_t> slot_units;
  std::vector<std::int64_t> rank_loads;   // [num_layers, num_ranks], copied units divided best
  std::vector<double> imbalance;          // [num_layers], max / mean; 1 if all loads are 0
  std::vector<std::int64_t> lower_bound;  // [num_layers], on the largest rank load
};

inline constexpr std::int64_t kMaxReplicaSlots = 512;  // of all ranks, copies counted in

/// Places the units so that the largest rank load is small once copied units are divided between
/// their two ranks as is best, in any proportion. Every rank gets as many slots, no unit two on one
/// rank. Infeasible only for kExact, where the bounded search does not finish.
ReplicaPlacement PlaceReplicas(const ReplicaProblem& problem);

/// Rank loads [num_layers, num_ranks] of a placement: units with two slots, on different ranks,
/// are divided such that the largest load of the layer is least (exact, whole ns).
/// slot_units: [num_layers, num_ranks, num_slots]; every unit has one or two slots.
std::vector<std::int64_t> DivideReplicas(std::span<const std::int64_t> loads,
                                         std::span<const std::int32_t> slot_units,
                                         std::int64_t num_layers, std::int64_t num_units,
                                         std::int64_t num_ranks);

}  // namespace shplb
