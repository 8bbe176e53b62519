// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "shplb/cost_model.h"

namespace shplb {

/// Nine numbers FlashInfer 0.6.12 takes as the plan of its sm90 prefill kernel: byte offsets into
/// the int workspace of qo_tile_indices, qo_indptr, kv_indptr, qo_len, kv_len, head_indices,
/// work_indptr, batch_indices, then same_schedule_for_all_heads, which is 0 here.
using PlanInfo = std::array<std::int64_t, 9>;

inline constexpr std::int64_t kMaxPlanCtas = 4096;
inline constexpr std::int64_t kMaxPlanItems = std::int64_t{1} << 24;
inline constexpr std::int64_t kMaxListTokens = std::int64_t{1} << 24;

enum class WorkPlanMethod { kAuto, kLongestFirst, kSnake };

/// Work items of one GPU and one attention call. Item i computes query rows
/// [qo_indptr[i], qo_indptr[i] + qo_lens[i]) of query head head_indices[i] against the first
/// kv_lens[i] tokens of the page list that begins at entry kv_indptr[i] of paged_kv_indices.
/// Items that share a list should follow each other: then different CTAs run them side by side.
struct WorkPlanProblem {
  std::span<const std::int32_t> qo_indptr;     // [num_items], >= 0, a row of q
  std::span<const std::int32_t> qo_lens;       // [num_items], rows, in [1, query tile]
  std::span<const std::int32_t> kv_indptr;     // [num_items], >= 0
  std::span<const std::int32_t> kv_lens;       // [num_items], tokens: 0 (output 0) or >= qo_lens
  std::span<const std::int32_t> head_indices;  // [num_items], >= 0
  std::int64_t num_ctas = 0;
  std::int64_t head_dim = 128;
  CostModel cost;
  WorkPlanMethod method = WorkPlanMethod::kAuto;
};

struct WorkPlan {
  PlanInfo plan_info{};
  std::int64_t num_bytes = 0;           // of the buffer that are in use
  std::vector<std::int32_t> order;      // [num_items], item at each position of the table
  std::vector<std::int64_t> cta_loads;  // [num_ctas], ns
  std::int64_t makespan_ns = 0;         // largest of cta_loads
  std::int64_t lower_bound_ns = 0;      // no assignment has a smaller makespan
};

/// Bytes WorkPlanner writes for this many items.
std::int64_t WorkPlanBytes(std::int64_t num_items, std::int64_t num_ctas);

/// Keeps its scratch from call to call: memory that is new to a process costs more than the plan.
/// One object per thread.
class WorkPlanner {
 public:
  WorkPlanner();
  ~WorkPlanner();

  /// Assigns items to CTAs and writes the eight int32 arrays into `buffer` (16-byte aligned, at
  /// least WorkPlanBytes). O(items) time.
  WorkPlan Plan(const WorkPlanProblem& problem, std::span<std::byte> buffer);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace shplb
