// SPDX-License-Identifier: Apache-2.0
#include "digest.h"

#include <numeric>

#include "sample.h"
#include "shplb/balance_aware.h"
#include "shplb/budget.h"
#include "shplb/placement.h"
#include "shplb/replica_placement.h"
#include "shplb/simulate.h"
#include "shplb/work_plan.h"

namespace shplb::sample {

namespace {

std::uint64_t BudgetDigest(std::uint64_t seed) {
  Random random(seed);
  const std::int64_t points = 1 + random.Below(8);
  BudgetProblem p;
  p.num_layers = 1 + random.Below(4);
  p.num_heads = 1 + random.Below(9);
  std::vector<double> densities, curves;
  for (std::int64_t i = 1; i <= points; ++i) {
    densities.push_back(static_cast<double>(i * i) / static_cast<double>(points * points));
  }
  p.objective = static_cast<BudgetObjective>(random.Below(4));
  for (std::int64_t i = 0; i < p.num_layers * p.num_heads * points; ++i) {
    curves.push_back(static_cast<double>(random.Below(1 << 20)) / (1 << 20));
  }
  p.curves = curves;
  p.densities = densities;
  p.scope = static_cast<BudgetScope>(random.Below(2));
  p.total_density = static_cast<double>(1 + random.Below(1000)) / 1000;
  p.min_density = p.total_density * static_cast<double>(random.Below(3)) / 3;
  const Budgets budgets = AllocateBudgets(p);
  Digest digest;
  digest.Add(budgets.density);
  digest.Add(&budgets.mean_density, 1);
  return digest.value();
}

std::uint64_t BalanceDigest(std::uint64_t seed) {
  Random random(seed);
  BalanceAwareProblem p;
  p.num_ranks = 1 + random.Below(4);
  p.num_groups = p.num_ranks * (1 + random.Below(3));
  p.budget.num_layers = 1 + random.Below(4);
  p.budget.num_heads = p.num_groups * (1 + random.Below(2));
  const std::vector<double> densities{0.0625, 0.25, 0.5, 1.0};
  std::vector<double> curves;
  for (std::int64_t i = 0; i < p.budget.num_layers * p.budget.num_heads; ++i) {
    double error = static_cast<double>(random.Skewed(20));
    for (std::size_t j = 0; j < densities.size(); ++j) {
      curves.push_back(error);
      error *= static_cast<double>(random.Below(1 << 10)) / (1 << 10);
    }
  }
  p.budget.curves = curves;
  p.budget.densities = densities;
  p.budget.scope = static_cast<BudgetScope>(random.Below(2));
  p.budget.total_density = static_cast<double>(1 + random.Below(1000)) / 1000;
  p.budget.min_density = p.budget.total_density * static_cast<double>(random.Below(3)) / 3;
  const BalanceAwareBudgets budgets = AllocateBalanceAware(p);
  Digest digest;
  digest.Add(budgets.density);
  digest.Add(budgets.group_to_rank);
  digest.Add(budgets.slowest_load);
  return digest.value();
}

std::uint64_t PlacementDigest(std::uint64_t seed) {
  Random random(seed);
  PlacementProblem p;
  p.num_ranks = 1 + random.Below(8);
  p.num_layers = 1 + random.Below(3);
  p.method = static_cast<PlacementMethod>(random.Below(6));
  const bool exact = p.method == PlacementMethod::kExact;
  p.num_units = p.num_ranks * (1 + random.Below(exact ? 2 : 8));
  p.equal_count = random.Below(2) == 0;
  std::vector<std::int64_t> loads(static_cast<std::size_t>(p.num_layers * p.num_units));
  for (auto& load : loads) load = random.Skewed(30);
  p.loads = loads;
  const Placement placement = PlaceHeads(p);
  Digest digest;
  digest.Add(placement.head_to_rank);
  digest.Add(placement.rank_loads);
  digest.Add(placement.lower_bound);
  digest.Add(placement.imbalance);
  return digest.value();
}

std::uint64_t ReplicaDigest(std::uint64_t seed) {
  Random random(seed);
  ReplicaProblem p;
  p.num_ranks = 2 + random.Below(4);
  p.num_layers = 1 + random.Below(3);
  p.method = static_cast<ReplicaMethod>(random.Below(3));
  const std::int64_t per_rank = 1 + random.Below(p.num_ranks == 2 ? 3 : 1);
  p.num_units = p.num_ranks * per_rank;
  p.num_replicas = random.Below(per_rank + 1);
  std::vector<std::int64_t> loads(static_cast<std::size_t>(p.num_layers * p.num_units));
  for (auto& load : loads) load = random.Skewed(30);
  p.loads = loads;
  const ReplicaPlacement placement = PlaceReplicas(p);
  Digest digest;
  digest.Add(placement.slot_units);
  digest.Add(placement.rank_loads);
  digest.Add(placement.lower_bound);
  digest.Add(DivideReplicas(loads, placement.slot_units, p.num_layers, p.num_units, p.num_ranks));
  return digest.value();
}

std::uint64_t WorkDigest(std::uint64_t seed) {
  Random random(seed);
  const auto items = static_cast<std::size_t>(random.Skewed(13));
  std::vector<std::int32_t> zeros(items), rows(items, 64), tokens(items);
  for (auto& t : tokens) t = static_cast<std::int32_t>(64 + random.Skewed(18));
  WorkPlanProblem p;
  p.qo_indptr = p.kv_indptr = p.head_indices = zeros;
  p.qo_lens = rows;
  p.kv_lens = tokens;
  p.num_ctas = 1 + random.Below(140);
  p.method = static_cast<WorkPlanMethod>(random.Below(3));
  std::vector<std::byte> buffer(
      static_cast<std::size_t>(WorkPlanBytes(static_cast<std::int64_t>(items), p.num_ctas)));
  const WorkPlan plan = WorkPlanner().Plan(p, buffer);
  Digest digest;
  digest.Add(plan.order);
  digest.Add(plan.cta_loads);
  return digest.value();
}

std::uint64_t StepDigest(std::uint64_t seed, StepPlanner* planner) {
  Random random(seed);
  std::vector<std::int64_t> prefix, fresh;
  std::int64_t rows = 0;
  for (std::int64_t i = 0; i <= random.Below(3); ++i) {
    prefix.push_back(random.Below(200 * 64));
    fresh.push_back(1 + random.Below(std::min<std::int64_t>(256 * 64 - prefix.back(), 4000)));
    rows += fresh.back();
  }
  std::vector<std::byte> buffer(static_cast<std::size_t>(
      planner->BufferBytes(static_cast<std::int64_t>(prefix.size()), rows)));
  StepPlan plan;
  planner->Plan(prefix, fresh, static_cast<StepMode>(random.Below(2)), buffer, &plan);
  Digest digest;
  digest.Add(plan.sparse);
  digest.Add(buffer.data(), static_cast<std::size_t>(plan.num_bytes));
  digest.Add(plan.plan_info);
  digest.Add(plan.rank_makespan_ns);
  digest.Add(plan.owned_blocks);
  digest.Add(&plan.step_ns, 1);
  return digest.value();
}

}  // namespace

std::uint64_t DigestOfCore(int rounds, std::uint64_t order_seed) {
  const Model plain = MakeModel(3, 4, 4, 2, 256, false, 1);
  const Model copied = MakeModel(2, 5, 2, 2, 256, true, 2);
  StepPlanner planners[] = {StepPlanner(plain.config), StepPlanner(copied.config),
                            StepPlanner(copied.config)};
  planners[2].SetRankSpeeds(std::vector<std::int64_t>{931, 1109});
  std::vector<int> order(static_cast<std::size_t>(rounds));
  std::iota(order.begin(), order.end(), 0);
  Random shuffle(order_seed);
  for (std::size_t i = order.size(); i > 1; --i) {
    std::swap(order[i - 1],
              order[static_cast<std::size_t>(shuffle.Below(static_cast<std::int64_t>(i)))]);
  }
  // A sum does not depend on the order of its terms.
  std::uint64_t sum = 0;
  for (const int round : order) {
    const auto seed = static_cast<std::uint64_t>(round) + 1;
    sum += BudgetDigest(seed) + 3 * PlacementDigest(seed) + 5 * WorkDigest(seed) +
           7 * StepDigest(seed, &planners[round % 3]) + 11 * BalanceDigest(seed) +
           13 * ReplicaDigest(seed);
  }
  return sum;
}

}  // namespace shplb::sample
