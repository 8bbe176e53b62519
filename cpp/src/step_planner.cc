// SPDX-License-Identifier: Apache-2.0
#include "shplb/step_planner.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>

#include "crew.h"
#include "int_layout.h"
#include "layer_planner.h"
#include "shplb/error.h"
#include "step_predictor.h"

namespace shplb {

using internal::Crew;
using internal::IntLayout;
using internal::LayerPlanner;
using internal::StepLists;
using internal::Stretch;

namespace {

/// Items of all layers below which waking threads costs more than they save.
constexpr std::int64_t kItemsWorthWaking = 4096;

const StepPlannerConfig& Checked(const StepPlannerConfig& config) {
  internal::Validate(config);
  return config;
}

}  // namespace

struct StepPlanner::Impl {
  explicit Impl(const StepPlannerConfig& config);

  std::int64_t Bytes(std::int64_t num_blocks) const;
  void CheckBuffer(std::span<std::byte> buffer, std::int64_t num_blocks) const;
  void WriteShared(IntLayout* layout, StepPlan* plan) const;
  void ShareFullLengths(IntLayout* layout, const StepPlan& plan);
  void PlanLayers(std::span<std::byte> buffer, std::int64_t start, StepPlan* plan);

  std::int64_t num_layers, num_ranks;
  StepLists lists;
  std::vector<LayerPlanner> workers;  // one per thread
  Crew crew;
};

StepPlanner::Impl::Impl(const StepPlannerConfig& c)
    : num_layers(c.num_layers),
      num_ranks(c.num_ranks),
      lists(c),
      workers(static_cast<std::size_t>(c.num_threads), LayerPlanner(lists, c.cost)),
      crew(static_cast<int>(c.num_threads)) {}

/// At least what WriteShared and the layers take; they take less if the lengths are shared.
std::int64_t StepPlanner::Impl::Bytes(std::int64_t num_blocks) const {
  IntLayout layout;
  for (int array = 0; array < 4; ++array) layout.Add(num_blocks);
  layout.Add(lists.ItemsPerLayer(num_blocks));
  return layout.used() + num_layers * lists.LayerBytes(num_blocks, false);
}

void StepPlanner::Impl::CheckBuffer(std::span<std::byte> buffer, std::int64_t num_blocks) const {
  if (lists.ItemsPerLayer(num_blocks) > kMaxPlanItems) {
    throw InvalidArgument("new_lens",
                          ToText(lists.ItemsPerLayer(num_blocks)) + " work items per layer",
                          "at most 2^24");
  }
  const std::int64_t bytes = Bytes(num_blocks);
  if (static_cast<std::int64_t>(buffer.size()) < bytes) {
    throw InvalidArgument("out", ToText(static_cast<std::int64_t>(buffer.size())) + " bytes",
                          "at least " + ToText(bytes));
  }
  if (reinterpret_cast<std::uintptr_t>(buffer.data()) % 16 != 0) {
    throw InvalidArgument("out", "an unaligned buffer", "16-byte alignment");
  }
}

void StepPlanner::Impl::WriteShared(IntLayout* layout, StepPlan* plan) const {
  const auto blocks = lists.predictor.blocks();
  const auto num_blocks = static_cast<std::int64_t>(blocks.size());
  plan->block_request_offset = layout->Add(num_blocks);
  plan->block_first_row_offset = layout->Add(num_blocks);
  plan->block_qo_indptr_offset = layout->Add(num_blocks);
  plan->block_qo_len_offset = layout->Add(num_blocks);
  std::int32_t* const request = layout->At(plan->block_request_offset);
  std::int32_t* const first_row = layout->At(plan->block_first_row_offset);
  std::int32_t* const qo_indptr = layout->At(plan->block_qo_indptr_offset);
  std::int32_t* const qo_len = layout->At(plan->block_qo_len_offset);
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    request[b] = blocks[b].request;
    first_row[b] = blocks[b].first_row;
    qo_indptr[b] = blocks[b].qo_indptr;
    qo_len[b] = blocks[b].qo_len;
  }
}

/// If all blocks are full, the layers share one qo_len array too.
void StepPlanner::Impl::ShareFullLengths(IntLayout* layout, const StepPlan& plan) {
  const auto rows = static_cast<std::int32_t>(lists.predictor.tables().query_block());
  lists.full_len_offset = -1;
  for (const Stretch& stretch : lists.stretches) {
    if (stretch.full_block < 0) return;
  }
  lists.full_len_offset = layout->Add(plan.num_items);
  std::fill_n(layout->At(lists.full_len_offset), plan.num_items, rows);
}

/// Layers do not depend on each other: threads take them in turn, and what they write does not
/// depend on who takes which.
void StepPlanner::Impl::PlanLayers(std::span<std::byte> buffer, std::int64_t start,
                                   StepPlan* plan) {
  const std::int64_t bytes = lists.LayerBytes(plan->num_blocks, lists.full_len_offset >= 0);
  std::atomic<std::int64_t> next{0};
  std::mutex failing;
  std::int64_t failed = num_layers;
  std::exception_ptr error;
  const auto work = [&](int worker) {
    LayerPlanner& planner = workers[static_cast<std::size_t>(worker)];
    for (std::int64_t layer = next++; layer < num_layers; layer = next++) {
      try {
        IntLayout layout(buffer, start + layer * bytes);
        planner.Plan(layer, &layout, plan);
      } catch (...) {
        const std::lock_guard lock(failing);
        if (layer < failed) error = std::current_exception();
        failed = std::min(failed, layer);
      }
    }
  };
  if (crew.size() == 1 || plan->num_items * num_layers < kItemsWorthWaking) {
    work(0);
  } else {
    crew.Run(std::ref(work));
  }
  if (error) std::rethrow_exception(error);
  plan->num_bytes = start + num_layers * bytes;
}

StepPlanner::StepPlanner(const StepPlannerConfig& config)
    : impl_(std::make_unique<Impl>(Checked(config))) {}
StepPlanner::~StepPlanner() = default;
StepPlanner::StepPlanner(StepPlanner&&) noexcept = default;
StepPlanner& StepPlanner::operator=(StepPlanner&&) noexcept = default;

std::int64_t StepPlanner::num_layers() const { return impl_->num_layers; }
std::int64_t StepPlanner::num_ranks() const { return impl_->num_ranks; }
std::int64_t StepPlanner::num_list_heads() const { return impl_->lists.num_list_heads; }

void StepPlanner::SetRankSpeeds(std::span<const std::int64_t> speeds) {
  if (static_cast<std::int64_t>(speeds.size()) != num_ranks()) {
    throw InvalidArgument("speeds", ToText(static_cast<std::int64_t>(speeds.size())) + " elements",
                          "num_ranks = " + ToText(num_ranks()));
  }
  for (std::size_t rank = 0; rank < speeds.size(); ++rank) {
    RequireInRange(ElementName("speeds", {static_cast<std::int64_t>(rank)}), speeds[rank],
                   kLeastSpeed, kMostSpeed);
  }
  impl_->lists.predictor.SetRankSpeeds(speeds);
}

std::int64_t StepPlanner::BufferBytes(std::int64_t num_requests,
                                      std::int64_t num_new_tokens) const {
  RequireInRange("num_requests", num_requests, 1, internal::kMaxStepBlocks);
  RequireInRange("num_new_tokens", num_new_tokens, num_requests, INT32_MAX);
  // Every request may begin and end inside a block.
  const std::int64_t blocks =
      num_new_tokens / impl_->lists.predictor.tables().query_block() + 2 * num_requests;
  return impl_->Bytes(std::min(blocks, num_new_tokens));
}

void StepPlanner::Predict(std::span<const std::int64_t> prefix_lens,
                          std::span<const std::int64_t> new_lens, StepMode mode, StepPlan* plan,
                          std::span<const std::uint8_t> stock) {
  impl_->lists.predictor.Run(prefix_lens, new_lens, mode, plan, stock);
  impl_->lists.SetOwned(plan);
}

void StepPlanner::Plan(std::span<const std::int64_t> prefix_lens,
                       std::span<const std::int64_t> new_lens, StepMode mode,
                       std::span<std::byte> buffer, StepPlan* plan,
                       std::span<const std::uint8_t> stock) {
  Predict(prefix_lens, new_lens, mode, plan, stock);
  const auto layers = static_cast<std::size_t>(impl_->num_layers);
  plan->num_lists = impl_->lists.PerLayer(plan->num_blocks);
  plan->num_items = impl_->lists.ItemsPerLayer(plan->num_blocks);
  plan->plan_info.assign(layers * 9, 0);
  plan->list_indptr_offset.assign(layers, 0);
  plan->list_pages.assign(layers, 0);
  plan->cta_makespan_ns.assign(layers, 0);
  plan->num_bytes = 0;
  if (plan->num_blocks == 0) return;
  impl_->CheckBuffer(buffer, plan->num_blocks);
  impl_->lists.MakeStretches();
  IntLayout layout(buffer);
  impl_->WriteShared(&layout, plan);
  // qo_tile_indices and batch_indices are zeros for every item of every layer.
  impl_->lists.zeros_offset = layout.Add(plan->num_items);
  std::memset(layout.At(impl_->lists.zeros_offset), 0,
              static_cast<std::size_t>(plan->num_items) * 4);
  impl_->ShareFullLengths(&layout, *plan);
  impl_->PlanLayers(buffer, layout.used(), plan);
}

void StepPlanner::DecodeLoads(std::span<const std::int64_t> kv_lens,
                              std::span<std::int64_t> loads) {
  impl_->lists.predictor.DecodeLoads(kv_lens, loads);
}

}  // namespace shplb
