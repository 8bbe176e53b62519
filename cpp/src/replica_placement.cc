// SPDX-License-Identifier: Apache-2.0
#include "shplb/replica_placement.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "replica_layer.h"
#include "shplb/error.h"
#include "shplb/placement.h"

namespace shplb {

namespace {

using internal::Leveller;
using internal::ReplicaLayer;
using internal::SharedLoad;

constexpr std::int64_t kMaxLayerLoad = std::int64_t{1} << 62;
constexpr std::int64_t kAutoExactUnits = 8;
constexpr std::int64_t kAutoNodes = 20'000;
constexpr std::int64_t kExactNodes = 20'000'000;

void CheckLoads(std::span<const std::int64_t> loads, std::int64_t num_layers,
                std::int64_t num_units) {
  const auto got = static_cast<std::int64_t>(loads.size());
  if (got != num_layers * num_units) {
    throw InvalidArgument("loads", ToText(got) + " elements", ToText(num_layers * num_units));
  }
  for (std::int64_t at = 0; at < got; ++at) {
    const std::int64_t load = loads[static_cast<std::size_t>(at)];
    if (load >= 0 && load <= kMaxLayerLoad / num_units) continue;
    throw InvalidArgument(ElementName("loads", {at / num_units, at % num_units}), ToText(load),
                          "a value in [0, 2^62 / num_units]");
  }
}

void Validate(const ReplicaProblem& p) {
  RequireInRange("num_layers", p.num_layers, 1, kMaxPlacementLayers);
  RequireInRange("num_units", p.num_units, 1, kMaxReplicaSlots);
  RequireInRange("num_ranks", p.num_ranks, 1, kMaxReplicaSlots);
  if (p.num_units % p.num_ranks != 0) {
    throw InvalidArgument("num_ranks", ToText(p.num_ranks),
                          "a divisor of num_units=" + ToText(p.num_units));
  }
  RequireInRange("num_replicas", p.num_replicas, 0,
                 p.num_ranks == 1 ? 0 : p.num_units / p.num_ranks);
  RequireInRange("num_units + num_ranks * num_replicas", p.num_units + p.num_ranks * p.num_replicas,
                 1, kMaxReplicaSlots);
  CheckLoads(p.loads, p.num_layers, p.num_units);
}

/// Seats the units and returns a lower bound on the largest load.
std::int64_t Solve(ReplicaMethod method, ReplicaLayer* layer) {
  const std::int64_t bound = ReplicaBound(*layer);
  PlaceGreedily(layer);
  if (method == ReplicaMethod::kGreedy) {
    layer->Evaluate();
    return bound;
  }
  const std::int64_t largest = ImproveReplicas(layer, bound);
  const bool exact = method == ReplicaMethod::kExact;
  if (largest <= bound) return bound;
  if (exact || layer->load.size() <= kAutoExactUnits) {
    const bool finished = SearchReplicas(layer, bound, exact ? kExactNodes : kAutoNodes);
    if (exact && !finished) {
      throw Infeasible("method 'exact': the search over " +
                       ToText(static_cast<std::int64_t>(layer->load.size())) +
                       " units did not finish within " + ToText(kExactNodes) +
                       " nodes; use 'auto'");
    }
  }
  return bound;
}

/// Units of every rank ascending, ranks in ascending order of their units; loads follow.
void WriteSlots(const ReplicaLayer& layer, std::span<std::int32_t> slot_units,
                std::span<std::int64_t> rank_loads) {
  std::vector<std::vector<std::int32_t>> units(rank_loads.size());
  for (std::size_t i = 0; i < layer.seat.size(); ++i) {
    for (const std::int32_t rank : layer.seat[i].rank) {
      if (rank >= 0) units[rank].push_back(layer.unit[i]);
    }
  }
  for (auto& each : units) std::sort(each.begin(), each.end());
  std::vector<std::size_t> order(units.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return units[a] != units[b] ? units[a] < units[b] : a < b;
  });
  std::size_t at = 0;
  for (std::size_t rank = 0; rank < order.size(); ++rank) {
    rank_loads[rank] = layer.rank_load[order[rank]];
    for (const std::int32_t unit : units[order[rank]]) slot_units[at++] = unit;
  }
}

double Imbalance(std::span<const std::int64_t> rank_loads) {
  const std::int64_t sum = std::accumulate(rank_loads.begin(), rank_loads.end(), std::int64_t{0});
  if (sum == 0) return 1.0;
  const std::int64_t most = *std::max_element(rank_loads.begin(), rank_loads.end());
  return static_cast<double>(most) * static_cast<double>(rank_loads.size()) /
         static_cast<double>(sum);
}

/// Ranks of every unit; throws unless each has one slot, or two on different ranks.
std::vector<internal::Seat> SeatsOf(std::span<const std::int32_t> slots, std::int64_t layer,
                                    std::int64_t num_units, std::int64_t num_ranks) {
  std::vector<internal::Seat> seats(static_cast<std::size_t>(num_units));
  const std::int64_t per_rank = static_cast<std::int64_t>(slots.size()) / num_ranks;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const auto rank = static_cast<std::int32_t>(static_cast<std::int64_t>(i) / per_rank);
    const std::string name =
        ElementName("slot_groups", {layer, rank, static_cast<std::int64_t>(i) % per_rank});
    if (slots[i] < 0 || slots[i] >= num_units) {
      throw InvalidArgument(name, ToText(std::int64_t{slots[i]}),
                            "a unit in [0, " + ToText(num_units) + ")");
    }
    internal::Seat& seat = seats[slots[i]];
    if (seat.copied() || seat.on(rank)) {
      throw InvalidArgument(name, "one more copy of unit " + ToText(std::int64_t{slots[i]}),
                            "at most two copies, on different ranks");
    }
    seat.rank[seat.rank[0] < 0 ? 0 : 1] = rank;
  }
  for (std::int64_t unit = 0; unit < num_units; ++unit) {
    if (seats[unit].rank[0] >= 0) continue;
    throw InvalidArgument(ElementName("slot_groups", {layer}), "no slot with unit " + ToText(unit),
                          "every unit in one or two slots");
  }
  return seats;
}

}  // namespace

ReplicaPlacement PlaceReplicas(const ReplicaProblem& problem) {
  Validate(problem);
  const auto units = static_cast<std::size_t>(problem.num_units);
  const auto ranks = static_cast<std::size_t>(problem.num_ranks);
  const auto layers = static_cast<std::size_t>(problem.num_layers);
  ReplicaLayer layer;
  layer.num_ranks = problem.num_ranks;
  layer.num_slots = problem.num_units / problem.num_ranks + problem.num_replicas;
  layer.num_copied = problem.num_ranks * problem.num_replicas;
  const std::size_t slots = ranks * static_cast<std::size_t>(layer.num_slots);
  ReplicaPlacement placement{std::vector<std::int32_t>(layers * slots),
                             std::vector<std::int64_t>(layers * ranks), std::vector<double>(layers),
                             std::vector<std::int64_t>(layers)};
  for (std::size_t l = 0; l < layers; ++l) {
    internal::SortUnits(problem.loads.subspan(l * units, units), &layer);
    placement.lower_bound[l] = Solve(problem.method, &layer);
    const std::span rank_loads(placement.rank_loads.data() + l * ranks, ranks);
    WriteSlots(layer, {placement.slot_units.data() + l * slots, slots}, rank_loads);
    placement.imbalance[l] = Imbalance(rank_loads);
  }
  return placement;
}

std::vector<std::int64_t> DivideReplicas(std::span<const std::int64_t> loads,
                                         std::span<const std::int32_t> slot_units,
                                         std::int64_t num_layers, std::int64_t num_units,
                                         std::int64_t num_ranks) {
  RequireInRange("num_layers", num_layers, 1, kMaxPlacementLayers);
  RequireInRange("num_units", num_units, 1, kMaxReplicaSlots);
  RequireInRange("num_ranks", num_ranks, 1, kMaxReplicaSlots);
  CheckLoads(loads, num_layers, num_units);
  const auto units = static_cast<std::size_t>(num_units);
  const std::size_t slots = slot_units.size() / static_cast<std::size_t>(num_layers);
  ReplicaLayer layer;
  layer.num_ranks = num_ranks;
  std::vector<std::int64_t> rank_loads;
  for (std::int64_t l = 0; l < num_layers; ++l) {
    const auto at = static_cast<std::size_t>(l);
    const auto own = loads.subspan(at * units, units);
    layer.load.assign(own.begin(), own.end());
    layer.seat = SeatsOf(slot_units.subspan(at * slots, slots), l, num_units, num_ranks);
    layer.Evaluate();
    rank_loads.insert(rank_loads.end(), layer.rank_load.begin(), layer.rank_load.end());
  }
  return rank_loads;
}

}  // namespace shplb
