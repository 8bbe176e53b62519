// SPDX-License-Identifier: Apache-2.0
#include "shplb/placement.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "placement_layer.h"
#include "shplb/error.h"

namespace shplb {

namespace {

using internal::LayerPlacement;

constexpr std::int64_t kMaxLayerLoad = std::int64_t{1} << 62;
constexpr std::int64_t kAutoExactUnits = 8;
constexpr std::int64_t kAutoNodes = 20'000;
/// Looks at two ranks; a node of the search takes at most the square of the ranks. Seconds at most.
constexpr std::int64_t kExactLooks = 4'000'000'000;

void Validate(const PlacementProblem& p) {
  RequireInRange("num_layers", p.num_layers, 1, kMaxPlacementLayers);
  RequireInRange("num_units", p.num_units, 1, kMaxUnits);
  RequireInRange("num_ranks", p.num_ranks, 1, kMaxRanks);
  if (p.equal_count && p.num_units % p.num_ranks != 0) {
    throw InvalidArgument("num_ranks", ToText(p.num_ranks),
                          "a divisor of num_units=" + ToText(p.num_units) + " under equal_count");
  }
  const auto expected = static_cast<std::size_t>(p.num_layers * p.num_units);
  if (p.loads.size() != expected) {
    throw InvalidArgument("loads", ToText(static_cast<std::int64_t>(p.loads.size())) + " elements",
                          ToText(p.num_layers * p.num_units));
  }
  for (std::int64_t at = 0; at < p.num_layers * p.num_units; ++at) {
    const std::int64_t load = p.loads[static_cast<std::size_t>(at)];
    if (load < 0 || load > kMaxLayerLoad / p.num_units) {
      throw InvalidArgument(ElementName("loads", {at / p.num_units, at % p.num_units}),
                            ToText(load), "a value in [0, 2^62 / num_units]");
    }
  }
}

std::int64_t Largest(const LayerPlacement& layer) {
  return *std::max_element(layer.rank_load.begin(), layer.rank_load.end());
}

/// Both bounds; the dearer one only if the cheap one does not already prove the optimum.
std::int64_t Bound(LayerPlacement* layer) {
  const std::int64_t bound = MeanBound(*layer);
  if (Largest(*layer) <= bound) return bound;
  return CountingBound(layer, bound);
}

/// Exact search from what `layer` holds; throws if it must finish and does not.
void Search(bool must_finish, std::int64_t bound, LayerPlacement* layer) {
  const std::int64_t exact_nodes = kExactLooks / (layer->num_ranks * layer->num_ranks);
  const bool finished = PlaceExact(layer, bound, must_finish ? exact_nodes : kAutoNodes);
  if (finished || !must_finish) return;
  throw Infeasible(
      "method 'exact': the search over " + ToText(static_cast<std::int64_t>(layer->load.size())) +
      " units did not finish within " + ToText(exact_nodes) + " nodes; use 'auto' or 'lpt_swap'");
}

/// Places the units and returns a lower bound on the largest load.
std::int64_t Solve(PlacementMethod method, LayerPlacement* layer) {
  switch (method) {
    case PlacementMethod::kContiguous:
      PlaceContiguous(layer);
      return Bound(layer);
    case PlacementMethod::kSnake:
      PlaceSnake(layer);
      return Bound(layer);
    case PlacementMethod::kLpt:
      PlaceLongestFirst(layer);
      return Bound(layer);
    case PlacementMethod::kLptSwap:
    case PlacementMethod::kExact:
    case PlacementMethod::kAuto:
      break;
  }
  PlaceLongestFirst(layer);
  ImproveBySwaps(layer, MeanBound(*layer));
  const std::int64_t bound = Bound(layer);
  const bool exact = method == PlacementMethod::kExact;
  const bool small = method == PlacementMethod::kAuto && layer->load.size() <= kAutoExactUnits;
  if ((exact || small) && Largest(*layer) > bound) Search(exact, bound, layer);
  return bound;
}

/// Names ranks in the order of their lowest unit; ranks without units come last.
void NameRanks(LayerPlacement* layer, std::span<std::int32_t> head_to_rank,
               std::span<std::int64_t> rank_loads) {
  layer->name.assign(rank_loads.size(), -1);
  std::int32_t next = 0;
  for (std::int32_t& rank : head_to_rank) {
    if (layer->name[rank] < 0) layer->name[rank] = next++;
    rank = layer->name[rank];
  }
  std::fill(rank_loads.begin(), rank_loads.end(), 0);
  for (std::size_t rank = 0; rank < rank_loads.size(); ++rank) {
    if (layer->name[rank] >= 0) rank_loads[layer->name[rank]] = layer->rank_load[rank];
  }
}

double Imbalance(std::span<const std::int64_t> rank_loads) {
  const std::int64_t sum = std::accumulate(rank_loads.begin(), rank_loads.end(), std::int64_t{0});
  if (sum == 0) return 1.0;
  const std::int64_t most = *std::max_element(rank_loads.begin(), rank_loads.end());
  return static_cast<double>(most) * static_cast<double>(rank_loads.size()) /
         static_cast<double>(sum);
}

}  // namespace

Placement PlaceHeads(const PlacementProblem& problem) {
  Validate(problem);
  const auto units = static_cast<std::size_t>(problem.num_units);
  const auto ranks = static_cast<std::size_t>(problem.num_ranks);
  const auto layers = static_cast<std::size_t>(problem.num_layers);
  Placement placement{std::vector<std::int32_t>(layers * units),
                      std::vector<std::int64_t>(layers * ranks), std::vector<double>(layers),
                      std::vector<std::int64_t>(layers)};
  LayerPlacement layer;
  layer.num_ranks = problem.num_ranks;
  layer.equal_count = problem.equal_count;
  layer.capacity = problem.equal_count ? problem.num_units / problem.num_ranks : problem.num_units;
  layer.load.resize(units);
  layer.unit.resize(units);
  layer.rank.resize(units);
  const bool dealt =
      problem.method == PlacementMethod::kContiguous || problem.method == PlacementMethod::kSnake;
  for (std::size_t l = 0; l < layers; ++l) {
    internal::SortUnits(problem.loads.subspan(l * units, units), &layer);
    placement.lower_bound[l] = Solve(problem.method, &layer);
    const std::span head_to_rank(placement.head_to_rank.data() + l * units, units);
    const std::span rank_loads(placement.rank_loads.data() + l * ranks, ranks);
    for (std::size_t i = 0; i < units; ++i) head_to_rank[layer.unit[i]] = layer.rank[i];
    if (dealt) {
      std::copy(layer.rank_load.begin(), layer.rank_load.end(), rank_loads.begin());
    } else {
      NameRanks(&layer, head_to_rank, rank_loads);
    }
    placement.imbalance[l] = Imbalance(rank_loads);
  }
  return placement;
}

ScaledLoads ScaleLoads(std::span<const double> loads, std::int64_t num_units) {
  double largest = 0.0;
  for (std::size_t i = 0; i < loads.size(); ++i) {
    if (!(loads[i] >= 0.0) || !std::isfinite(loads[i])) {
      const auto at = static_cast<std::int64_t>(i);
      throw InvalidArgument(ElementName("loads", {at / num_units, at % num_units}),
                            ToText(loads[i]), "a finite load >= 0");
    }
    largest = std::max(largest, loads[i]);
  }
  constexpr double kLargestScaled = static_cast<double>(std::int64_t{1} << 40);
  ScaledLoads scaled{std::vector<std::int64_t>(loads.size()), largest / kLargestScaled};
  if (largest == 0.0) return scaled;
  for (std::size_t i = 0; i < loads.size(); ++i) {
    scaled.loads[i] = std::llround(loads[i] / largest * kLargestScaled);
  }
  return scaled;
}

}  // namespace shplb
