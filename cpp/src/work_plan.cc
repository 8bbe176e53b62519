// SPDX-License-Identifier: Apache-2.0
#include "shplb/work_plan.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>

#include "int_layout.h"
#include "shplb/error.h"
#include "work_schedule.h"

namespace shplb {

namespace {

using internal::IntLayout;
using internal::RunWriter;
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

/// Of all but the items' values.
void Validate(const WorkPlanProblem& p) {
  Validate(p.cost);
  RequireInRange("num_ctas", p.num_ctas, 1, kMaxPlanCtas);
  const auto num_items = static_cast<std::int64_t>(p.kv_lens.size());
  RequireInRange("num_items", num_items, 1, kMaxPlanItems);
  CheckSize("qo_indptr", p.qo_indptr, p.kv_lens.size());
  CheckSize("qo_lens", p.qo_lens, p.kv_lens.size());
  CheckSize("kv_indptr", p.kv_indptr, p.kv_lens.size());
  CheckSize("head_indices", p.head_indices, p.kv_lens.size());
}

void CheckBuffer(const WorkPlanProblem& p, std::span<std::byte> buffer) {
  const std::int64_t bytes = WorkPlanBytes(static_cast<std::int64_t>(p.kv_lens.size()), p.num_ctas);
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

/// An item in 16 bytes, since the tables read items in another order than they come. The rows have
/// 8 bits, which the lengths and row numbers leave over.
struct PackedItem {
  PackedItem(const WorkPlanProblem& p, std::size_t i) {
    const auto rows = static_cast<std::uint32_t>(p.qo_lens[i]) - 1;
    row = static_cast<std::uint32_t>(p.qo_indptr[i]) | rows >> 7 << 31;
    entry = p.kv_indptr[i];
    tokens = static_cast<std::uint32_t>(p.kv_lens[i]) | rows << 25;
    head = p.head_indices[i];
  }
  PackedItem() = default;

  std::int32_t qo_indptr() const { return static_cast<std::int32_t>(row & 0x7fffffff); }
  std::int32_t qo_len() const {
    return static_cast<std::int32_t>(row >> 31 << 7 | tokens >> 25) + 1;
  }
  std::int32_t kv_len() const { return static_cast<std::int32_t>(tokens & 0x1ffffff); }

  std::uint32_t row;
  std::int32_t entry;
  std::uint32_t tokens;
  std::int32_t head;
};

/// Mean, longest item, and: of the k * ctas + 1 longest items some CTA has k + 1.
std::int64_t LowerBound(const WorkScheduler& scheduler) {
  const std::span<const internal::WorkItem> items = scheduler.sorted_items();
  const std::size_t ctas = scheduler.loads().size();
  std::int64_t sum = 0;
  for (const std::int64_t load : scheduler.loads()) sum += load;
  const auto num_ctas = static_cast<std::int64_t>(ctas);
  std::int64_t bound = (sum + num_ctas - 1) / num_ctas;
  std::int64_t count = 1;  // k + 1
  for (std::size_t i = 0; i < items.size(); i += ctas, ++count) {
    // The k + 1 items that end at this one are at least as long as it.
    bound = std::max(bound, scheduler.LoadOf(items[i]) * count);
  }
  return bound;
}

}  // namespace

struct WorkPlanner::Impl {
  void Pack(const WorkPlanProblem& p, std::int64_t tile_rows);
  void Schedule(const WorkPlanProblem& p);
  template <std::uint32_t kTile>
  void AddItems(std::span<const std::int32_t> tokens, RunWriter* runs);
  void Write(const WorkPlanProblem& p, const IntLayout& layout, WorkPlan* plan);

  WorkScheduler scheduler;
  std::vector<PackedItem> packed;
};

/// Checks without branches first, since all items are right as a rule.
void WorkPlanner::Impl::Pack(const WorkPlanProblem& p, std::int64_t tile_rows) {
  const std::size_t num_items = p.kv_lens.size();
  if (packed.size() < num_items) packed.resize(num_items);
  const auto most_rows = static_cast<std::uint32_t>(tile_rows);
  std::int32_t wrong = 0;  // its sign bit
  for (std::size_t i = 0; i < num_items; ++i) {
    const std::int32_t rows = p.qo_lens[i];
    const std::int32_t tokens = p.kv_lens[i];
    const std::int32_t short_list = tokens < rows && tokens != 0 ? -1 : 0;
    const std::int32_t long_list = tokens > kMaxListTokens ? -1 : 0;
    const std::int32_t bad_rows = static_cast<std::uint32_t>(rows) - 1 >= most_rows ? -1 : 0;
    wrong |=
        short_list | long_list | bad_rows | p.qo_indptr[i] | p.kv_indptr[i] | p.head_indices[i];
    packed[i] = PackedItem(p, i);
  }
  if (wrong >= 0) return;
  for (std::size_t i = 0; i < num_items; ++i) CheckItem(p, i, tile_rows);
}

void WorkPlanner::Impl::Schedule(const WorkPlanProblem& p) {
  scheduler.Configure(p.num_ctas, p.cost.item_ns, p.cost.kv_tile_ns);
  RunWriter runs = scheduler.Begin(p.kv_lens.size());
  if (TileShapeOf(p.head_dim).kv_tokens == 96) {
    AddItems<96>(p.kv_lens, &runs);
  } else {
    AddItems<32>(p.kv_lens, &runs);
  }
  scheduler.Schedule(MethodOf(p.method), runs);
}

/// Division by a constant, which compilers turn into a multiplication.
template <std::uint32_t kTile>
void WorkPlanner::Impl::AddItems(std::span<const std::int32_t> tokens, RunWriter* runs) {
  RunWriter writer = *runs;  // a local object, whose members can stay in registers
  for (const std::int32_t count : tokens) {
    writer.Add(static_cast<std::int32_t>((static_cast<std::uint32_t>(count) + kTile - 1) / kTile));
  }
  *runs = writer;
}

void WorkPlanner::Impl::Write(const WorkPlanProblem& p, const IntLayout& layout, WorkPlan* plan) {
  const PlanInfo& info = plan->plan_info;
  const std::size_t num_items = p.kv_lens.size();
  std::memset(layout.At(info[0]), 0, num_items * 4);
  std::memset(layout.At(info[7]), 0, num_items * 4);
  std::int32_t* const qo_indptr = layout.At(info[1]);
  std::int32_t* const kv_indptr = layout.At(info[2]);
  std::int32_t* const qo_len = layout.At(info[3]);
  std::int32_t* const kv_len = layout.At(info[4]);
  std::int32_t* const head = layout.At(info[5]);
  const std::span<const std::int32_t> order = scheduler.order();
  for (std::size_t position = 0; position < num_items; ++position) {
    const PackedItem item = packed[static_cast<std::size_t>(order[position])];
    qo_indptr[position] = item.qo_indptr();
    kv_indptr[position] = item.entry;
    qo_len[position] = item.qo_len();
    kv_len[position] = item.kv_len();
    head[position] = item.head;
  }
  plan->order.assign(order.begin(), order.end());
  std::copy(scheduler.indptr().begin(), scheduler.indptr().end(), layout.At(info[6]));
}

std::int64_t WorkPlanBytes(std::int64_t num_items, std::int64_t num_ctas) {
  RequireInRange("num_items", num_items, 1, kMaxPlanItems);
  RequireInRange("num_ctas", num_ctas, 1, kMaxPlanCtas);
  IntLayout layout;
  Layout(num_items, num_ctas, &layout);
  return layout.used();
}

WorkPlanner::WorkPlanner() : impl_(std::make_unique<Impl>()) {}
WorkPlanner::~WorkPlanner() = default;

WorkPlan WorkPlanner::Plan(const WorkPlanProblem& p, std::span<std::byte> buffer) {
  const TileShape tile = TileShapeOf(p.head_dim);
  Validate(p);
  impl_->Pack(p, tile.query_rows);
  CheckBuffer(p, buffer);
  impl_->Schedule(p);
  IntLayout layout(buffer);
  WorkPlan plan;
  plan.plan_info = Layout(static_cast<std::int64_t>(p.kv_lens.size()), p.num_ctas, &layout);
  plan.num_bytes = layout.used();
  impl_->Write(p, layout, &plan);
  const std::span<const std::int64_t> loads = impl_->scheduler.loads();
  plan.cta_loads.assign(loads.begin(), loads.end());
  plan.makespan_ns = *std::max_element(loads.begin(), loads.end());
  plan.lower_bound_ns = LowerBound(impl_->scheduler);
  return plan;
}

}  // namespace shplb
