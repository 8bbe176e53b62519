// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "shplb/step_planner.h"

namespace shplb {

/// A trace of steps: step s runs the requests [step_indptr[s], step_indptr[s + 1]).
struct StepTrace {
  std::span<const std::int64_t> step_indptr;  // [num_steps + 1], from 0, strictly ascending
  std::span<const std::int64_t> prefix_lens;  // [num_requests], tokens
  std::span<const std::int64_t> new_lens;     // [num_requests], tokens
};

struct Simulation {
  std::vector<std::int64_t> step_ns;      // [num_steps], attention time as planned
  std::vector<std::int64_t> dense_ns;     // [num_steps], all on the stock path
  std::vector<std::int64_t> makespan_ns;  // [num_steps], sparse attention, slowest rank per layer
  std::vector<std::int64_t> rank_ns;      // [num_steps, num_ranks], sparse attention, own time
  std::vector<std::int64_t> num_sparse;   // [num_steps], requests that ran sparse
  std::vector<double> bubble;             // [num_steps], 1 - mean(rank_ns) / makespan_ns; 0 if none
};

/// What the planner predicts for every step of a trace. Ranks wait for each other after every
/// layer, so a step's makespan is the sum over layers of the slowest rank.
Simulation Simulate(StepPlanner* planner, const StepTrace& trace, StepMode mode);

}  // namespace shplb
