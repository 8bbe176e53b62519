// SPDX-License-Identifier: Apache-2.0
#include "shplb/step_planner.h"

#include <algorithm>
#include <cstring>

#include "int_layout.h"
#include "shplb/error.h"
#include "step_predictor.h"
#include "work_schedule.h"

namespace shplb {

using internal::Block;
using internal::IntLayout;
using internal::Replica;
using internal::StepPredictor;
using internal::WorkScheduler;

namespace {

/// A work item in one place, since tables are written in another order than lists are made.
struct Item {
  std::int32_t qo_indptr;
  std::uint16_t head;  // of this rank
  std::uint16_t qo_len;
  // These differ from layer to layer.
  std::int32_t kv_indptr;
  std::int32_t kv_len;
};

/// Blocks [first, end) that follow each other in one request and are full, or one that is not.
struct Stretch {
  std::int32_t first;
  std::int32_t end;
  std::int32_t full_block;  // of `first` in its request, counted from 0; -1: not full
};

const StepPlannerConfig& Checked(const StepPlannerConfig& config) {
  internal::Validate(config);
  return config;
}

}  // namespace

struct StepPlanner::Impl {
  explicit Impl(const StepPlannerConfig& config);

  std::int64_t ListsPerLayer(std::int64_t num_blocks) const { return num_list_heads * num_blocks; }
  std::int64_t ItemsPerLayer(std::int64_t num_blocks) const {
    return num_list_heads * items_per_list * num_blocks;
  }
  void FillFull(const StepPlannerConfig& c, const std::uint16_t* row);
  std::int64_t Bytes(std::int64_t num_blocks) const;
  void CheckBuffer(std::span<std::byte> buffer, std::int64_t num_blocks) const;
  void MakeStretches();
  void MakeItems();
  void WriteShared(IntLayout* layout, StepPlan* plan) const;
  void ShareFullLengths(IntLayout* layout, const StepPlan& plan);
  void PlanLayer(std::int64_t layer, IntLayout* layout, StepPlan* plan);
  void SetOwned(std::int64_t layer, StepPlan* plan) const;
  std::int64_t FillLists(std::int64_t layer, const std::int32_t* owned, std::int32_t* list_indptr);
  template <std::uint32_t kTile>
  std::int64_t FillLists(std::int64_t layer, const std::int32_t* owned, std::int32_t* list_indptr);
  void WriteItems(const std::int64_t* info, const IntLayout& layout);

  std::int64_t num_layers, num_ranks, num_slots, rank, num_ctas, stride;
  std::int64_t num_list_heads;  // of this rank: query heads, or KV slots under shared lists
  std::int64_t items_per_list;  // query heads that share a list
  std::int64_t lists_per_slot;
  std::int64_t kv_tile;
  std::int64_t zeros_offset = 0;
  std::int64_t full_len_offset = -1;  // of an array of full blocks' lengths, if all blocks are full
  std::int64_t full_stride;
  std::vector<std::uint16_t> keep;       // [num_layers, num_list_heads, max_pages + 1]
  std::vector<std::uint16_t> full_keep;  // [num_layers, num_list_heads, full blocks], with forced
  StepPredictor predictor;
  WorkScheduler scheduler;
  // Scratch of one step.
  std::vector<Item> items;   // [num_items]
  std::vector<Item> placed;  // [num_items], in the order of the tables
  std::vector<Stretch> stretches;
};

StepPlanner::Impl::Impl(const StepPlannerConfig& c)
    : num_layers(c.num_layers),
      num_ranks(c.num_ranks),
      num_slots(c.num_slots),
      rank(c.rank),
      num_ctas(c.num_ctas),
      stride(c.max_pages + 1),
      num_list_heads(c.num_slots * (c.shared_lists ? 1 : c.num_qo_heads / c.num_kv_heads)),
      items_per_list(c.shared_lists ? c.num_qo_heads / c.num_kv_heads : 1),
      lists_per_slot(num_list_heads / num_slots),
      kv_tile(TileShapeOf(c.head_dim).kv_tokens),
      full_stride(c.max_pages * kPageTokens / TileShapeOf(c.head_dim).query_rows),
      keep(static_cast<std::size_t>(num_layers * num_list_heads * stride)),
      predictor(c) {
  scheduler.Configure(c.num_ctas, c.cost.item_ns, c.cost.kv_tile_ns);
  const std::int64_t group_size = c.num_qo_heads / c.num_kv_heads;
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    for (std::int64_t j = 0; j < num_list_heads; ++j) {
      const std::int64_t slot = j / lists_per_slot;
      const std::int64_t group = c.slot_groups[(layer * num_ranks + rank) * num_slots + slot];
      const std::int64_t head = group * group_size + (j % lists_per_slot) * items_per_list;
      const std::int32_t* from = c.keep_pages.data() + (layer * c.num_qo_heads + head) * stride;
      std::uint16_t* const to = keep.data() + (layer * num_list_heads + j) * stride;
      for (std::int64_t i = 0; i < items_per_list; ++i, from += stride) {
        for (std::int64_t n = 0; n < stride; ++n) {
          to[n] = std::max(to[n], static_cast<std::uint16_t>(from[n]));
        }
      }
      FillFull(c, to);
    }
  }
}

/// Lengths of the lists of full blocks, for the list head whose kept pages are `row`.
void StepPlanner::Impl::FillFull(const StepPlannerConfig& c, const std::uint16_t* row) {
  const std::int64_t rows = TileShapeOf(c.head_dim).query_rows;
  for (std::int64_t block = 0; block < full_stride; ++block) {
    const std::int64_t forced =
        internal::NumForcedPages(block * rows, (block + 1) * rows, c.sink_pages, c.local_pages);
    const std::int64_t kept = row[(block + 1) * rows / kPageTokens];
    full_keep.push_back(static_cast<std::uint16_t>(std::max(kept, forced)));
  }
}

/// At least what WriteShared and PlanLayer take; they take less if the lengths are shared.
std::int64_t StepPlanner::Impl::Bytes(std::int64_t num_blocks) const {
  IntLayout layout;
  const std::int64_t num_items = ItemsPerLayer(num_blocks);
  const std::int64_t num_lists = ListsPerLayer(num_blocks);
  for (int array = 0; array < 4; ++array) layout.Add(num_blocks);
  layout.Add(num_items);
  IntLayout one_layer;
  one_layer.Add(num_lists + 1);
  for (int array = 0; array < 5; ++array) one_layer.Add(num_items);
  one_layer.Add(num_ctas + 1);
  return layout.used() + num_layers * one_layer.used();
}

void StepPlanner::Impl::CheckBuffer(std::span<std::byte> buffer, std::int64_t num_blocks) const {
  if (ItemsPerLayer(num_blocks) > kMaxPlanItems) {
    throw InvalidArgument("new_lens", ToText(ItemsPerLayer(num_blocks)) + " work items per layer",
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

void StepPlanner::Impl::MakeStretches() {
  const auto blocks = predictor.blocks();
  const auto rows = static_cast<std::int32_t>(predictor.tables().query_block());
  stretches.clear();
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    const auto at = static_cast<std::int32_t>(b);
    const bool full = blocks[b].qo_len == rows;
    if (full && b > 0 && stretches.back().full_block >= 0 &&
        blocks[b - 1].request == blocks[b].request) {
      ++stretches.back().end;
    } else {
      stretches.push_back({at, at + 1, full ? blocks[b].first_row / rows : -1});
    }
  }
}

/// Items that share a list follow each other, so that the stable sort keeps them together.
void StepPlanner::Impl::MakeItems() {
  const auto blocks = predictor.blocks();
  const std::size_t num_lists = static_cast<std::size_t>(num_list_heads) * blocks.size();
  items.resize(num_lists * static_cast<std::size_t>(items_per_list));
  placed.resize(items.size());
  Item* item = items.data();
  for (std::int64_t j = 0; j < num_list_heads; ++j) {
    for (const Block& block : blocks) {
      for (std::int64_t i = 0; i < items_per_list; ++i) {
        *item++ = {block.qo_indptr, static_cast<std::uint16_t>(j * items_per_list + i),
                   static_cast<std::uint16_t>(block.qo_len), 0, 0};
      }
    }
  }
  scheduler.tiles().resize(num_lists);
}

void StepPlanner::Impl::WriteShared(IntLayout* layout, StepPlan* plan) const {
  const auto blocks = predictor.blocks();
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

/// Blocks [first, end) of every slot that this rank computes.
void StepPlanner::Impl::SetOwned(std::int64_t layer, StepPlan* plan) const {
  std::int32_t* const owned = plan->owned_blocks.data() + layer * num_slots * 2;
  for (std::int64_t slot = 0; slot < num_slots; ++slot) {
    owned[2 * slot] = 0;
    owned[2 * slot + 1] = static_cast<std::int32_t>(plan->num_blocks);
  }
  const auto replicas = predictor.tables().replicas(layer);
  for (std::size_t k = 0; k < replicas.size(); ++k) {
    if (replicas[k].rank[0] == rank) owned[2 * replicas[k].slot[0] + 1] = predictor.cut(layer, k);
    if (replicas[k].rank[1] == rank) owned[2 * replicas[k].slot[1]] = predictor.cut(layer, k);
  }
}

/// Lengths of all lists of a layer; returns their sum in pages.
std::int64_t StepPlanner::Impl::FillLists(std::int64_t layer, const std::int32_t* owned,
                                          std::int32_t* list_indptr) {
  const std::int64_t pages = kv_tile == 96 ? FillLists<96>(layer, owned, list_indptr)
                                           : FillLists<32>(layer, owned, list_indptr);
  if (pages > INT32_MAX) {
    throw InvalidArgument("new_lens", ToText(pages) + " page table entries in a layer",
                          "fewer than 2^31");
  }
  list_indptr[items.size() / static_cast<std::size_t>(items_per_list)] =
      static_cast<std::int32_t>(pages);
  return pages;
}

template <std::uint32_t kTile>
std::int64_t StepPlanner::Impl::FillLists(std::int64_t layer, const std::int32_t* owned,
                                          std::int32_t* list_indptr) {
  const Block* const blocks = predictor.blocks().data();
  const auto per_list = static_cast<std::size_t>(items_per_list);
  std::int32_t* tiles = scheduler.tiles().data();
  Item* item = items.data();
  std::int64_t pages = 0;
  const auto add = [&](std::int32_t length, std::int32_t unused_tokens) {
    const std::int32_t tokens = length * static_cast<std::int32_t>(kPageTokens) - unused_tokens;
    const auto first = static_cast<std::int32_t>(pages);
    *list_indptr++ = first;
    *tiles++ = static_cast<std::int32_t>((static_cast<std::uint32_t>(tokens) + kTile - 1) / kTile);
    for (std::size_t i = 0; i < per_list; ++i, ++item) {
      item->kv_indptr = first;
      item->kv_len = tokens;
    }
    pages += length;
  };
  for (std::int64_t j = 0; j < num_list_heads; ++j) {
    const std::uint16_t* const row = keep.data() + (layer * num_list_heads + j) * stride;
    const std::uint16_t* const full = full_keep.data() + (layer * num_list_heads + j) * full_stride;
    const std::int32_t first = owned[2 * (j / lists_per_slot)];
    const std::int32_t end = owned[2 * (j / lists_per_slot) + 1];
    for (const Stretch& s : stretches) {
      const std::int32_t from = std::clamp(first, s.first, s.end);
      const std::int32_t to = std::clamp(end, from, s.end);
      for (std::int32_t b = s.first; b < from; ++b) add(0, 0);
      if (s.full_block >= 0) {
        const std::uint16_t* const lengths = full + s.full_block - s.first;
        for (std::int32_t b = from; b < to; ++b) add(lengths[b], 0);
      } else if (from < to) {
        const Block& block = blocks[from];
        const std::int32_t kept = row[block.visible_pages];
        add(std::max(kept, block.forced_pages), block.unused_tokens);
      }
      for (std::int32_t b = to; b < s.end; ++b) add(0, 0);
    }
  }
  return pages;
}

void StepPlanner::Impl::WriteItems(const std::int64_t* info, const IntLayout& layout) {
  std::int32_t* const qo_indptr = layout.At(info[1]);
  std::int32_t* const kv_indptr = layout.At(info[2]);
  std::int32_t* const qo_len = layout.At(info[3]);
  std::int32_t* const kv_len = layout.At(info[4]);
  std::int32_t* const head = layout.At(info[5]);
  std::copy(scheduler.indptr().begin(), scheduler.indptr().end(), layout.At(info[6]));
  // One scattered store per item, then sequential ones: five scattered ones would fall on the same
  // cache sets.
  const Item* const from = items.data();
  Item* const to = placed.data();
  scheduler.ForEachItem([=](std::int32_t position, std::int32_t i) { to[position] = from[i]; });
  for (std::size_t i = 0; i < items.size(); ++i) {
    const Item item = to[i];
    qo_indptr[i] = item.qo_indptr;
    kv_indptr[i] = item.kv_indptr;
    kv_len[i] = item.kv_len;
    head[i] = item.head;
  }
  if (full_len_offset >= 0) return;
  for (std::size_t i = 0; i < items.size(); ++i) qo_len[i] = to[i].qo_len;
}

/// If all blocks are full, the layers share one qo_len array too.
void StepPlanner::Impl::ShareFullLengths(IntLayout* layout, const StepPlan& plan) {
  const auto rows = static_cast<std::int32_t>(predictor.tables().query_block());
  full_len_offset = -1;
  for (const Stretch& stretch : stretches) {
    if (stretch.full_block < 0) return;
  }
  full_len_offset = layout->Add(plan.num_items);
  std::fill_n(layout->At(full_len_offset), plan.num_items, rows);
}

void StepPlanner::Impl::PlanLayer(std::int64_t layer, IntLayout* layout, StepPlan* plan) {
  SetOwned(layer, plan);
  plan->list_indptr_offset[layer] = layout->Add(plan->num_lists + 1);
  plan->list_pages[layer] = FillLists(layer, plan->owned_blocks.data() + layer * num_slots * 2,
                                      layout->At(plan->list_indptr_offset[layer]));
  scheduler.Schedule(internal::WorkMethod::kAuto, static_cast<std::int32_t>(items_per_list));
  std::int64_t* const info = plan->plan_info.data() + layer * 9;
  info[0] = zeros_offset;
  for (const int array : {1, 2, 4, 5}) info[array] = layout->Add(plan->num_items);
  info[3] = full_len_offset >= 0 ? full_len_offset : layout->Add(plan->num_items);
  info[6] = layout->Add(num_ctas + 1);
  info[7] = zeros_offset;
  info[8] = 0;
  WriteItems(info, *layout);
  plan->cta_makespan_ns[layer] =
      *std::max_element(scheduler.loads().begin(), scheduler.loads().end());
}

StepPlanner::StepPlanner(const StepPlannerConfig& config)
    : impl_(std::make_unique<Impl>(Checked(config))) {}
StepPlanner::~StepPlanner() = default;
StepPlanner::StepPlanner(StepPlanner&&) noexcept = default;
StepPlanner& StepPlanner::operator=(StepPlanner&&) noexcept = default;

std::int64_t StepPlanner::num_layers() const { return impl_->num_layers; }
std::int64_t StepPlanner::num_ranks() const { return impl_->num_ranks; }
std::int64_t StepPlanner::num_slots() const { return impl_->num_slots; }

std::int64_t StepPlanner::BufferBytes(std::int64_t num_requests,
                                      std::int64_t num_new_tokens) const {
  RequireInRange("num_requests", num_requests, 1, internal::kMaxStepBlocks);
  RequireInRange("num_new_tokens", num_new_tokens, num_requests, INT32_MAX);
  // Every request may begin and end inside a block.
  const std::int64_t blocks =
      num_new_tokens / impl_->predictor.tables().query_block() + 2 * num_requests;
  return impl_->Bytes(std::min(blocks, num_new_tokens));
}

void StepPlanner::Predict(std::span<const std::int64_t> prefix_lens,
                          std::span<const std::int64_t> new_lens, StepMode mode, StepPlan* plan) {
  impl_->predictor.Run(prefix_lens, new_lens, mode, plan);
}

void StepPlanner::Plan(std::span<const std::int64_t> prefix_lens,
                       std::span<const std::int64_t> new_lens, StepMode mode,
                       std::span<std::byte> buffer, StepPlan* plan) {
  impl_->predictor.Run(prefix_lens, new_lens, mode, plan);
  const auto layers = static_cast<std::size_t>(impl_->num_layers);
  plan->num_lists = impl_->ListsPerLayer(plan->num_blocks);
  plan->num_items = impl_->ItemsPerLayer(plan->num_blocks);
  plan->plan_info.assign(layers * 9, 0);
  plan->list_indptr_offset.assign(layers, 0);
  plan->list_pages.assign(layers, 0);
  plan->cta_makespan_ns.assign(layers, 0);
  plan->owned_blocks.assign(layers * static_cast<std::size_t>(impl_->num_slots) * 2, 0);
  plan->num_bytes = 0;
  if (plan->num_blocks == 0) return;
  impl_->CheckBuffer(buffer, plan->num_blocks);
  impl_->MakeStretches();
  impl_->MakeItems();
  IntLayout layout(buffer);
  impl_->WriteShared(&layout, plan);
  // qo_tile_indices and batch_indices are zeros for every item of every layer.
  impl_->zeros_offset = layout.Add(plan->num_items);
  std::memset(layout.At(impl_->zeros_offset), 0, static_cast<std::size_t>(plan->num_items) * 4);
  impl_->ShareFullLengths(&layout, *plan);
  for (std::int64_t layer = 0; layer < impl_->num_layers; ++layer) {
    impl_->PlanLayer(layer, &layout, plan);
  }
  plan->num_bytes = layout.used();
}

void StepPlanner::DecodeLoads(std::span<const std::int64_t> kv_lens,
                              std::span<std::int64_t> loads) {
  impl_->predictor.DecodeLoads(kv_lens, loads);
}

}  // namespace shplb
