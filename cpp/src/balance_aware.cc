// SPDX-License-Identifier: Apache-2.0
#include "shplb/balance_aware.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "balance_layer.h"
#include "balance_search.h"
#include "budget_group.h"
#include "shplb/error.h"
#include "shplb/placement.h"

namespace shplb {

namespace {

using internal::BalanceLayer;
using internal::BudgetGroup;
using internal::GainCurve;
using internal::int128;
using internal::kUnit;
using internal::Segment;

/// Turns that help are few; the limit only bounds the time.
constexpr int kMostTurns = 32;

void CheckPlacement(const BalanceAwareProblem& p) {
  if (p.group_to_rank.empty()) return;
  const std::int64_t groups = p.budget.num_layers * p.num_groups;
  if (static_cast<std::int64_t>(p.group_to_rank.size()) != groups) {
    throw InvalidArgument("group_to_rank",
                          ToText(static_cast<std::int64_t>(p.group_to_rank.size())) + " elements",
                          "num_layers * num_groups = " + ToText(groups));
  }
  std::vector<std::int64_t> count(static_cast<std::size_t>(p.num_ranks));
  for (std::int64_t at = 0; at < groups; ++at) {
    if (at % p.num_groups == 0) std::fill(count.begin(), count.end(), 0);
    const std::int32_t rank = p.group_to_rank[static_cast<std::size_t>(at)];
    const bool known = rank >= 0 && rank < p.num_ranks;
    if (known && ++count[static_cast<std::size_t>(rank)] <= p.num_groups / p.num_ranks) continue;
    throw InvalidArgument(ElementName("group_to_rank", {at / p.num_groups, at % p.num_groups}),
                          ToText(std::int64_t{rank}),
                          "a rank below num_ranks=" + ToText(p.num_ranks) +
                              " with at most num_groups / num_ranks groups");
  }
}

void CheckLoads(const BalanceAwareProblem& p) {
  if (p.slowest_load.empty()) return;
  if (static_cast<std::int64_t>(p.slowest_load.size()) != p.budget.num_layers) {
    throw InvalidArgument("slowest_load",
                          ToText(static_cast<std::int64_t>(p.slowest_load.size())) + " elements",
                          "num_layers=" + ToText(p.budget.num_layers));
  }
  const auto most = static_cast<double>(p.budget.num_heads);
  for (std::size_t layer = 0; layer < p.slowest_load.size(); ++layer) {
    const double load = p.slowest_load[layer];
    if (load >= 0.0 && load <= most) continue;
    throw InvalidArgument(ElementName("slowest_load", {static_cast<std::int64_t>(layer)}),
                          ToText(load), "a value in [0, num_heads=" + ToText(most) + "]");
  }
}

void Validate(const BalanceAwareProblem& p) {
  if (p.budget.objective != BudgetObjective::kMinError) {
    throw InvalidArgument("objective", "another objective", "min_error");
  }
  internal::ValidateBudgets(p.budget);
  RequireInRange("num_groups", p.num_groups, 1, std::min(p.budget.num_heads, kMaxUnits));
  RequireInRange("num_ranks", p.num_ranks, 1, kMaxRanks);
  if (p.budget.num_heads % p.num_groups != 0) {
    throw InvalidArgument("num_groups", ToText(p.num_groups),
                          "a divisor of num_heads=" + ToText(p.budget.num_heads));
  }
  if (p.num_groups % p.num_ranks != 0) {
    throw InvalidArgument("num_ranks", ToText(p.num_ranks),
                          "a divisor of num_groups=" + ToText(p.num_groups));
  }
  CheckPlacement(p);
  CheckLoads(p);
}

/// Summed densities [num_layers, num_groups] on the grid, inert heads left out.
std::vector<std::int64_t> GroupLoads(const BalanceAwareProblem& p,
                                     std::span<const std::int64_t> density) {
  const std::int64_t size = p.budget.num_heads / p.num_groups;
  std::vector<std::int64_t> loads(static_cast<std::size_t>(p.budget.num_layers * p.num_groups));
  for (std::size_t head = 0; head < density.size(); ++head) {
    const auto at = static_cast<std::int64_t>(head);
    if (!internal::IsInert(p.budget, at)) {
      loads[static_cast<std::size_t>(at / size)] += density[head];
    }
  }
  return loads;
}

/// Load [num_layers] of the slowest rank.
std::vector<std::int64_t> SlowestLoads(const BalanceAwareProblem& p,
                                       std::span<const std::int64_t> density,
                                       std::span<const std::int32_t> group_to_rank) {
  const std::vector<std::int64_t> loads = GroupLoads(p, density);
  std::vector<std::int64_t> slowest;
  for (std::size_t first = 0; first < loads.size();
       first += static_cast<std::size_t>(p.num_groups)) {
    std::vector<std::int64_t> ranks(static_cast<std::size_t>(p.num_ranks));
    for (std::size_t at = first; at < first + static_cast<std::size_t>(p.num_groups); ++at) {
      ranks[static_cast<std::size_t>(group_to_rank[at])] += loads[at];
    }
    slowest.push_back(*std::max_element(ranks.begin(), ranks.end()));
  }
  return slowest;
}

/// Where the search starts, and what it may spend: the two solved apart, where not given.
struct Start {
  std::vector<std::int32_t> group_to_rank;
  std::vector<std::int64_t> limits;  // [num_layers]
};

Start SolveApart(const BalanceAwareProblem& p) {
  Start start;
  start.group_to_rank.assign(p.group_to_rank.begin(), p.group_to_rank.end());
  for (const double load : p.slowest_load) start.limits.push_back(internal::OnGrid(load));
  if (!start.group_to_rank.empty() && !start.limits.empty()) return start;
  std::vector<std::int64_t> density;
  for (const double d : AllocateBudgets(p.budget).density) density.push_back(internal::OnGrid(d));
  if (start.group_to_rank.empty()) {
    const std::vector<std::int64_t> loads = GroupLoads(p, density);
    PlacementProblem placement;
    placement.num_layers = p.budget.num_layers;
    placement.num_units = p.num_groups;
    placement.loads = loads;
    placement.num_ranks = p.num_ranks;
    start.group_to_rank = PlaceHeads(placement).head_to_rank;
  }
  if (start.limits.empty()) start.limits = SlowestLoads(p, density, start.group_to_rank);
  return start;
}

/// Layers that share one limit, and the best known answer for them.
class Balancing {
 public:
  Balancing(std::vector<BalanceLayer> layers, std::span<std::int32_t> group_to_rank,
            std::int64_t limit)
      : layers_(std::move(layers)), placement_(group_to_rank), limit_(limit) {
    SetCeilings(Curves(placement_));
  }

  void Search() {
    for (int turn = 0; turn < kMostTurns; ++turn) {
      if (!Turn([this](std::size_t) { return NetOfPrice(); }) &&
          !Turn([this](std::size_t layer) { return AtCeiling(ceilings_[layer]); })) {
        return;
      }
    }
  }

  /// Densities [num_heads] of one layer.
  void Fill(std::size_t layer, std::span<std::int64_t> density) const {
    layers_[layer].Fill(RanksOf(placement_, layer), ceilings_[layer], density);
  }

 private:
  std::span<std::int32_t> RanksOf(std::span<std::int32_t> placement, std::size_t layer) const {
    const auto groups = static_cast<std::size_t>(layers_[layer].num_groups());
    return placement.subspan(layer * groups, groups);
  }

  std::vector<GainCurve> Curves(std::span<std::int32_t> placement) const {
    std::vector<GainCurve> curves;
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
      curves.push_back(layers_[layer].CurveOf(RanksOf(placement, layer)));
    }
    return curves;
  }

  static std::int64_t LeastOf(const std::vector<GainCurve>& curves) {
    std::int64_t least = 0;
    for (const GainCurve& curve : curves) least += curve.front().density;
    return least;
  }

  std::vector<std::int64_t> BestCeilings(const std::vector<GainCurve>& curves) const {
    std::int64_t most = 0;
    for (const GainCurve& curve : curves) most += curve.back().density;
    return internal::MaximiseSum(curves, std::clamp(limit_, LeastOf(curves), most));
  }

  static std::int64_t GainOf(const std::vector<GainCurve>& curves,
                             const std::vector<std::int64_t>& ceilings) {
    std::int64_t gain = 0;
    for (std::size_t layer = 0; layer < curves.size(); ++layer) {
      gain += internal::GainOnGrid(curves[layer], ceilings[layer]);
    }
    return gain;
  }

  void SetCeilings(std::vector<GainCurve> curves) {
    ceilings_ = BestCeilings(curves);
    gain_ = GainOf(curves, ceilings_);
    curves_ = std::move(curves);
  }

  /// A new placement of every layer by its score, then new ceilings; false if that does not help.
  template <class ScoreOf>
  bool Turn(ScoreOf score_of) {
    std::vector<std::int32_t> placement(placement_.begin(), placement_.end());
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
      internal::ImproveSplit(layers_[layer], score_of(layer), RanksOf(placement, layer));
    }
    std::vector<GainCurve> curves = Curves(placement);
    if (LeastOf(curves) > std::max(limit_, LeastOf(curves_))) return false;
    if (GainOf(curves, BestCeilings(curves)) <= gain_) return false;
    std::copy(placement.begin(), placement.end(), placement_.begin());
    SetCeilings(std::move(curves));
    return true;
  }

  /// Steepest segment that the ceilings leave open: the gain of one more unit of the limit.
  Segment Price() const {
    Segment price{1, 0, 0};
    for (std::size_t layer = 0; layer < curves_.size(); ++layer) {
      const GainCurve hull = internal::ConcaveHull(curves_[layer]);
      for (std::size_t i = 1; i < hull.size(); ++i) {
        if (hull[i].density <= ceilings_[layer]) continue;
        const Segment next{hull[i].density - hull[i - 1].density, hull[i].gain - hull[i - 1].gain,
                           0};
        if (internal::Cross(next, price) > 0) price = next;
        break;
      }
    }
    return price;
  }

  /// Largest gain less the price of its ceiling.
  internal::CurveScore NetOfPrice() const {
    return [price = Price()](const GainCurve& curve) {
      int128 best = -(static_cast<int128>(1) << 126);
      for (const internal::CurvePoint& point : curve) {
        best = std::max(best, static_cast<int128>(point.gain) * price.length -
                                  static_cast<int128>(point.density) * price.rise);
      }
      return best;
    };
  }

  static internal::CurveScore AtCeiling(std::int64_t ceiling) {
    return [ceiling](const GainCurve& curve) {
      if (curve.front().density > ceiling) return static_cast<int128>(-1);
      return static_cast<int128>(internal::GainOnGrid(curve, ceiling));
    };
  }

  std::vector<BalanceLayer> layers_;
  std::span<std::int32_t> placement_;
  std::int64_t limit_;
  std::vector<GainCurve> curves_;
  std::vector<std::int64_t> ceilings_;
  std::int64_t gain_ = 0;
};

/// Layers [first, last) share one limit. Adds to the error; writes densities on the grid.
void SolveLayers(const BalanceAwareProblem& p, std::int64_t first, std::int64_t last, Start* start,
                 std::span<std::int64_t> density, double* total_error) {
  const std::int64_t heads = p.budget.num_heads;
  const BudgetGroup group = internal::MakeGroup(p.budget, first * heads, last * heads);
  std::vector<GainCurve> curves(static_cast<std::size_t>((last - first) * heads));
  for (std::size_t i = 0; i < group.heads.size(); ++i) {
    curves[static_cast<std::size_t>(group.heads[i] - first * heads)] =
        internal::ConcaveHull(group.curves[i]);
  }
  std::vector<BalanceLayer> layers;
  std::int64_t limit = 0;
  for (std::int64_t layer = first; layer < last; ++layer) {
    const auto from = curves.begin() + (layer - first) * heads;
    layers.emplace_back(std::vector<GainCurve>(from, from + heads), p.num_groups, p.num_ranks);
    limit += start->limits[static_cast<std::size_t>(layer)];
  }
  const auto groups = static_cast<std::size_t>(p.num_groups);
  Balancing balancing(std::move(layers),
                      std::span(start->group_to_rank)
                          .subspan(static_cast<std::size_t>(first) * groups,
                                   static_cast<std::size_t>(last - first) * groups),
                      limit);
  if (p.group_to_rank.empty()) balancing.Search();
  for (std::int64_t layer = first; layer < last; ++layer) {
    balancing.Fill(
        static_cast<std::size_t>(layer - first),
        density.subspan(static_cast<std::size_t>(layer * heads), static_cast<std::size_t>(heads)));
  }
  for (const std::int64_t head : group.heads) {
    const GainCurve& hull = curves[static_cast<std::size_t>(head - first * heads)];
    const double gain = internal::GainAt(hull, density[static_cast<std::size_t>(head)]);
    *total_error += group.scale * (1.0 - gain / static_cast<double>(kUnit));
  }
}

}  // namespace

BalanceAwareBudgets AllocateBalanceAware(const BalanceAwareProblem& problem) {
  Validate(problem);
  const BudgetProblem& p = problem.budget;
  Start start = SolveApart(problem);
  std::vector<std::int64_t> density(static_cast<std::size_t>(p.num_layers * p.num_heads));
  BalanceAwareBudgets result;
  const std::int64_t step = p.scope == BudgetScope::kLayer ? 1 : p.num_layers;
  for (std::int64_t first = 0; first < p.num_layers; first += step) {
    SolveLayers(problem, first, first + step, &start, density, &result.total_error);
  }
  const auto groups = static_cast<std::size_t>(problem.num_groups);
  for (std::size_t first = 0; first < start.group_to_rank.size(); first += groups) {
    if (!problem.group_to_rank.empty()) break;
    internal::NameByLowestGroup(problem.num_ranks,
                                std::span(start.group_to_rank).subspan(first, groups));
  }
  for (const std::int64_t load : SlowestLoads(problem, density, start.group_to_rank)) {
    result.slowest_load.push_back(static_cast<double>(load) / static_cast<double>(kUnit));
  }
  double sum = 0.0;
  std::int64_t count = 0;
  for (std::size_t head = 0; head < density.size(); ++head) {
    const bool inert = internal::IsInert(p, static_cast<std::int64_t>(head));
    result.density.push_back(inert ? p.min_density : internal::FromGrid(p, density[head]));
    if (!inert) sum += result.density.back();
    if (!inert) ++count;
  }
  result.mean_density = sum / static_cast<double>(count);
  result.group_to_rank = std::move(start.group_to_rank);
  return result;
}

}  // namespace shplb
