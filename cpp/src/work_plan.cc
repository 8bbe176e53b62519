// SPDX-License-Identifier: Apache-2.0
#include "shplb/work_plan.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "int_layout.h"
#include "shplb/error.h"
#include "work_schedule.h"

namespace shplb {

namespace {

using internal::IntLayout;
using internal::WorkMethod;
using internal::WorkScheduler;

void CheckSize(std::string_view argument, std::span<const std::int32_t> values,
               std::size_t expected) {
  if (values.size() == expected) return;
  throw InvalidArgument(argument, ToText(static_cast<std::int64_t>(values.size())) + " elements",
                        ToText(static_cast<std::int64_t>(expected)) + ", as kv_lens");
}

[[noreturn]] void Refuse(std::string_view argument, std::size_t i, std::int32_t got,
                         const std::string& expected) {
  throw InvalidArgument(ElementName(argument, {static_cast<std::int64_t>(i)}),
                        ToText(std::int64_t{got}), expected);
}

void CheckItem(const WorkPlanProblem& p, std::size_t i, std::int64_t tile_rows) {
  const std::int32_t rows = p.qo_lens[i];
  const std::int32_t tokens = p.kv_lens[i];
  if (rows < 1 || rows > tile_rows) {
    Refuse("qo_lens", i, rows, "1 to " + ToText(tile_rows) + " rows");
  }
  if (tokens != 0 && (tokens < rows || tokens > kMaxListTokens)) {
    Refuse("kv_lens", i, tokens, "0, or at least qo_lens and at most 2^24 tokens");
  }
  if (p.qo_indptr[i] < 0) Refuse("qo_indptr", i, p.qo_indptr[i], "a row >= 0");
  if (p.kv_indptr[i] < 0) Refuse("kv_indptr", i, p.kv_indptr[i], "an entry >= 0");
  if (p.head_indices[i] < 0) Refuse("head_indices", i, p.head_indices[i], "a head >= 0");
}

void Validate(const WorkPlanProblem& p, std::span<std::byte> buffer) {
  const TileShape tile = TileShapeOf(p.head_dim);
  Validate(p.cost);
  RequireInRange("num_ctas", p.num_ctas, 1, kMaxPlanCtas);
  const auto num_items = static_cast<std::int64_t>(p.kv_lens.size());
  RequireInRange("num_items", num_items, 1, kMaxPlanItems);
  CheckSize("qo_indptr", p.qo_indptr, p.kv_lens.size());
  CheckSize("qo_lens", p.qo_lens, p.kv_lens.size());
  CheckSize("kv_indptr", p.kv_indptr, p.kv_lens.size());
  CheckSize("head_indices", p.head_indices, p.kv_lens.size());
  for (std::size_t i = 0; i < p.kv_lens.size(); ++i) CheckItem(p, i, tile.query_rows);
  const std::int64_t bytes = WorkPlanBytes(num_items, p.num_ctas);
  if (static_cast<std::int64_t>(buffer.size()) < bytes) {
    throw InvalidArgument("out", ToText(static_cast<std::int64_t>(buffer.size())) + " bytes",
                          "at least " + ToText(bytes));
  }
  if (reinterpret_cast<std::uintptr_t>(buffer.data()) % 16 != 0) {
    throw InvalidArgument("out", "an unaligned buffer", "16-byte alignment");
  }
}

/// Offsets in FlashInfer's own order.
PlanInfo Layout(std::int64_t num_items, std::int64_t num_ctas, IntLayout* layout) {
  PlanInfo info{};
  for (std::size_t array = 0; array < 6; ++array) info[array] = layout->Add(num_items);
  info[6] = layout->Add(num_ctas + 1);
  info[7] = layout->Add(num_items);
  return info;
}

WorkMethod MethodOf(WorkPlanMethod method) {
  switch (method) {
    case WorkPlanMethod::kSnake:
      return WorkMethod::kSnake;
    case WorkPlanMethod::kLongestFirst:
      return WorkMethod::kLongestFirst;
    case WorkPlanMethod::kAuto:
      break;
  }
  return WorkMethod::kAuto;
}

/// Runs of consecutive items with equally many tiles.
void FillRuns(const WorkPlanProblem& p, std::vector<internal::WorkRun>* runs) {
  const auto kv_tokens = static_cast<std::int32_t>(TileShapeOf(p.head_dim).kv_tokens);
  runs->clear();
  for (std::size_t i = 0; i < p.kv_lens.size(); ++i) {
    const std::int32_t tiles = (p.kv_lens[i] + kv_tokens - 1) / kv_tokens;
    if (runs->empty() || runs->back().tiles != tiles) {
      runs->push_back({tiles, static_cast<std::int32_t>(i), 0});
    }
    ++runs->back().count;
  }
}

/// Mean, longest item, and: of the k * ctas + 1 longest items some CTA has k + 1.
std::int64_t LowerBound(std::span<const internal::WorkRun> sorted, const WorkPlanProblem& p) {
  const auto load = [&](const internal::WorkRun& run) {
    return p.cost.item_ns + p.cost.kv_tile_ns * run.tiles;
  };
  std::int64_t sum = 0;
  for (const internal::WorkRun& run : sorted) sum += load(run) * run.count;
  std::int64_t bound = std::max((sum + p.num_ctas - 1) / p.num_ctas, load(sorted[0]));
  std::int64_t position = 0;  // of the run's first item
  std::int64_t last = 0;      // k * ctas of the latest bound, whose item is the longest left over
  for (const internal::WorkRun& run : sorted) {
    position += run.count;
    for (; last + p.num_ctas < position; last += p.num_ctas) {
      // The k + 1 items that end at this one are at least as long as it.
      bound = std::max(bound, load(run) * ((last + p.num_ctas) / p.num_ctas + 1));
    }
  }
  return bound;
}

void Write(const WorkPlanProblem& p, const IntLayout& layout, const WorkScheduler& scheduler,
           WorkPlan* plan) {
  const PlanInfo& info = plan->plan_info;
  const std::size_t num_items = p.kv_lens.size();
  std::memset(layout.At(info[0]), 0, num_items * 4);
  std::memset(layout.At(info[7]), 0, num_items * 4);
  std::int32_t* const qo_indptr = layout.At(info[1]);
  std::int32_t* const kv_indptr = layout.At(info[2]);
  std::int32_t* const qo_len = layout.At(info[3]);
  std::int32_t* const kv_len = layout.At(info[4]);
  std::int32_t* const head = layout.At(info[5]);
  plan->order.resize(num_items);
  const auto order = scheduler.order();
  plan->order.assign(order.begin(), order.end());
  for (std::size_t position = 0; position < num_items; ++position) {
    const auto item = static_cast<std::size_t>(order[position]);
    qo_indptr[position] = p.qo_indptr[item];
    kv_indptr[position] = p.kv_indptr[item];
    qo_len[position] = p.qo_lens[item];
    kv_len[position] = p.kv_lens[item];
    head[position] = p.head_indices[item];
  }
  std::copy(scheduler.indptr().begin(), scheduler.indptr().end(), layout.At(info[6]));
}

}  // namespace

std::int64_t WorkPlanBytes(std::int64_t num_items, std::int64_t num_ctas) {
  RequireInRange("num_items", num_items, 1, kMaxPlanItems);
  RequireInRange("num_ctas", num_ctas, 1, kMaxPlanCtas);
  IntLayout layout;
  Layout(num_items, num_ctas, &layout);
  return layout.used();
}

WorkPlan PlanWork(const WorkPlanProblem& p, std::span<std::byte> buffer) {
  Validate(p, buffer);
  WorkScheduler scheduler(p.num_ctas, p.cost.item_ns, p.cost.kv_tile_ns);
  FillRuns(p, &scheduler.runs());
  scheduler.Schedule(MethodOf(p.method));
  IntLayout layout(buffer);
  WorkPlan plan;
  plan.plan_info = Layout(static_cast<std::int64_t>(p.kv_lens.size()), p.num_ctas, &layout);
  plan.num_bytes = layout.used();
  Write(p, layout, scheduler, &plan);
  plan.cta_loads.assign(scheduler.loads().begin(), scheduler.loads().end());
  plan.makespan_ns = *std::max_element(plan.cta_loads.begin(), plan.cta_loads.end());
  plan.lower_bound_ns = LowerBound(scheduler.sorted_runs(), p);
  return plan;
}

}  // namespace shplb
