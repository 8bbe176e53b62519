// SPDX-License-Identifier: Apache-2.0
#include "shplb/simulate.h"

#include <algorithm>
#include <numeric>

#include "shplb/error.h"

namespace shplb {

namespace {

constexpr std::int64_t kMaxTrace = std::int64_t{1} << 24;

void Validate(const StepTrace& trace) {
  const auto num_steps = static_cast<std::int64_t>(trace.step_indptr.size()) - 1;
  const auto num_requests = static_cast<std::int64_t>(trace.prefix_lens.size());
  RequireInRange("num_steps", num_steps, 1, kMaxTrace);
  RequireInRange("num_requests", num_requests, 1, kMaxTrace);
  if (trace.new_lens.size() != trace.prefix_lens.size()) {
    throw InvalidArgument("new_lens",
                          ToText(static_cast<std::int64_t>(trace.new_lens.size())) + " elements",
                          ToText(num_requests) + ", as prefix_lens");
  }
  if (trace.step_indptr[0] != 0) {
    throw InvalidArgument("step_indptr[0]", ToText(trace.step_indptr[0]), "0");
  }
  for (std::int64_t s = 0; s < num_steps; ++s) {
    if (trace.step_indptr[s + 1] <= trace.step_indptr[s] ||
        trace.step_indptr[s + 1] > num_requests) {
      throw InvalidArgument(ElementName("step_indptr", {s + 1}), ToText(trace.step_indptr[s + 1]),
                            "strictly ascending, at most num_requests=" + ToText(num_requests));
    }
  }
  if (trace.step_indptr[num_steps] != num_requests) {
    throw InvalidArgument("step_indptr[-1]", ToText(trace.step_indptr[num_steps]),
                          "num_requests=" + ToText(num_requests));
  }
}

void AddStep(const StepPlanner& planner, const StepPlan& plan, Simulation* simulation) {
  const std::int64_t ranks = planner.num_ranks();
  const std::size_t first = simulation->rank_ns.size();
  simulation->rank_ns.resize(first + static_cast<std::size_t>(ranks));
  std::int64_t makespan = 0;
  std::int64_t sum = 0;
  for (std::int64_t layer = 0; layer < planner.num_layers(); ++layer) {
    const std::int64_t* const row = plan.rank_makespan_ns.data() + layer * ranks;
    for (std::int64_t rank = 0; rank < ranks; ++rank)
      simulation->rank_ns[first + rank] += row[rank];
    sum += std::accumulate(row, row + ranks, std::int64_t{0});
    makespan += *std::max_element(row, row + ranks);
  }
  simulation->step_ns.push_back(plan.step_ns);
  simulation->dense_ns.push_back(plan.dense_ns);
  simulation->makespan_ns.push_back(makespan);
  simulation->num_sparse.push_back(std::count(plan.sparse.begin(), plan.sparse.end(), 1));
  simulation->bubble.push_back(makespan == 0
                                   ? 0.0
                                   : 1.0 - static_cast<double>(sum) / static_cast<double>(ranks) /
                                               static_cast<double>(makespan));
}

}  // namespace

Simulation Simulate(StepPlanner* planner, const StepTrace& trace, StepMode mode) {
  Validate(trace);
  Simulation simulation;
  StepPlan plan;
  for (std::size_t s = 0; s + 1 < trace.step_indptr.size(); ++s) {
    const auto first = static_cast<std::size_t>(trace.step_indptr[s]);
    const auto count = static_cast<std::size_t>(trace.step_indptr[s + 1]) - first;
    planner->Predict(trace.prefix_lens.subspan(first, count), trace.new_lens.subspan(first, count),
                     mode, &plan);
    AddStep(*planner, plan, &simulation);
  }
  return simulation;
}

}  // namespace shplb
