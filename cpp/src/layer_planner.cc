// SPDX-License-Identifier: Apache-2.0
#include "layer_planner.h"

#include <algorithm>

#include "reciprocal.h"
#include "shplb/error.h"

namespace shplb::internal {

StepLists::StepLists(const StepPlannerConfig& c)
    : num_slots(c.num_slots),
      rank(c.rank),
      num_ctas(c.num_ctas),
      stride(c.max_pages + 1),
      num_list_heads(c.num_slots * (c.shared_lists ? 1 : c.num_qo_heads / c.num_kv_heads)),
      items_per_list(c.shared_lists ? c.num_qo_heads / c.num_kv_heads : 1),
      lists_per_slot(num_list_heads / num_slots),
      kv_tile(TileShapeOf(c.head_dim).kv_tokens),
      full_stride(c.max_pages * kPageTokens / TileShapeOf(c.head_dim).query_rows),
      keep(static_cast<std::size_t>(c.num_layers * num_list_heads * stride)),
      predictor(c) {
  const std::int64_t group_size = c.num_qo_heads / c.num_kv_heads;
  for (std::int64_t layer = 0; layer < c.num_layers; ++layer) {
    for (std::int64_t j = 0; j < num_list_heads; ++j) {
      const std::int64_t slot = j / lists_per_slot;
      const std::int64_t group = c.slot_groups[(layer * c.num_ranks + rank) * num_slots + slot];
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
void StepLists::FillFull(const StepPlannerConfig& c, const std::uint16_t* row) {
  const std::int64_t rows = TileShapeOf(c.head_dim).query_rows;
  for (std::int64_t block = 0; block < full_stride; ++block) {
    const std::int64_t forced =
        NumForcedPages(block * rows, (block + 1) * rows, c.sink_pages, c.local_pages);
    const std::int64_t kept = row[(block + 1) * rows / kPageTokens];
    full_keep.push_back(static_cast<std::uint16_t>(std::max(kept, forced)));
  }
}

std::int64_t StepLists::LayerBytes(std::int64_t num_blocks, bool shared_qo_len) const {
  IntLayout layout;
  layout.Add(PerLayer(num_blocks) + 1);
  for (int array = 0; array < (shared_qo_len ? 4 : 5); ++array) {
    layout.Add(ItemsPerLayer(num_blocks));
  }
  layout.Add(num_ctas + 1);
  return layout.used();
}

void StepLists::MakeStretches() {
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

void StepLists::SetOwned(StepPlan* plan) const {
  const std::int64_t num_layers = predictor.num_layers();
  const auto all = static_cast<std::int32_t>(plan->num_blocks);
  plan->owned_blocks.resize(static_cast<std::size_t>(num_layers * num_list_heads * 2));
  for (std::size_t at = 0; at < plan->owned_blocks.size(); at += 2) {
    plan->owned_blocks[at] = 0;
    plan->owned_blocks[at + 1] = all;
  }
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    std::int32_t* const owned = plan->owned_blocks.data() + layer * num_list_heads * 2;
    const auto replicas = predictor.tables().replicas(layer);
    for (std::size_t k = 0; k < replicas.size(); ++k) {
      const Cut& cut = predictor.cut(layer, k);
      for (const std::int32_t side : {0, 1}) {
        if (replicas[k].rank[side] != rank) continue;
        std::int32_t* const of_slot = owned + replicas[k].slot[side] * lists_per_slot * 2;
        for (std::int64_t j = 0; j < lists_per_slot; ++j) {
          of_slot[2 * j + 1 - side] = cut.EndOf(j);
        }
      }
    }
  }
}

LayerPlanner::LayerPlanner(const StepLists& lists, const CostModel& cost) : lists_(lists) {
  scheduler_.Configure(lists.num_ctas, cost.item_ns, cost.kv_tile_ns);
}

std::int64_t LayerPlanner::FillLists(std::int64_t layer, const std::int32_t* owned,
                                     std::int32_t* list_indptr, RunWriter* runs) const {
  const std::int64_t pages = lists_.kv_tile == 96 ? FillLists<96>(layer, owned, list_indptr, runs)
                                                  : FillLists<32>(layer, owned, list_indptr, runs);
  if (pages <= INT32_MAX) return pages;
  throw InvalidArgument("new_lens", ToText(pages) + " page table entries in a layer",
                        "fewer than 2^31");
}

template <std::uint32_t kTile>
std::int64_t LayerPlanner::FillLists(std::int64_t layer, const std::int32_t* owned,
                                     std::int32_t* list_indptr, RunWriter* runs) const {
  const Block* const blocks = lists_.predictor.blocks().data();
  RunWriter writer = *runs;  // a local object, whose members can stay in registers
  std::int64_t pages = 0;
  *list_indptr++ = 0;
  const auto skip = [&] {
    writer.Skip();
    *list_indptr++ = static_cast<std::int32_t>(pages);
  };
  const auto add = [&](std::int32_t length, std::int32_t unused_tokens) {
    const std::int32_t tokens = length * static_cast<std::int32_t>(kPageTokens) - unused_tokens;
    writer.Add(static_cast<std::int32_t>((static_cast<std::uint32_t>(tokens) + kTile - 1) / kTile));
    pages += length;
    *list_indptr++ = static_cast<std::int32_t>(pages);
  };
  for (std::int64_t j = 0; j < lists_.num_list_heads; ++j) {
    const std::uint16_t* const row =
        lists_.keep.data() + (layer * lists_.num_list_heads + j) * lists_.stride;
    const std::uint16_t* const full =
        lists_.full_keep.data() + (layer * lists_.num_list_heads + j) * lists_.full_stride;
    const std::int32_t first = owned[2 * j];
    const std::int32_t end = owned[2 * j + 1];
    for (const Stretch& s : lists_.stretches) {
      const std::int32_t from = std::clamp(first, s.first, s.end);
      const std::int32_t to = std::clamp(end, from, s.end);
      for (std::int32_t b = s.first; b < from; ++b) skip();
      if (s.full_block >= 0) {
        const std::uint16_t* const lengths = full + s.full_block - s.first;
        for (std::int32_t b = from; b < to; ++b) add(lengths[b], 0);
      } else if (from < to) {
        const Block& block = blocks[from];
        const std::int32_t kept = row[block.visible_pages];
        add(std::max(kept, block.forced_pages), block.unused_tokens);
      }
      for (std::int32_t b = to; b < s.end; ++b) skip();
    }
  }
  *runs = writer;
  return pages;
}

void LayerPlanner::WriteItems(const StepPlan& plan, std::int64_t layer,
                              const IntLayout& layout) const {
  const std::span<const std::int32_t> indptr = scheduler_.indptr();
  std::copy(indptr.begin(), indptr.end(), layout.At(plan.plan_info[layer * 9 + 6]));
  ClearUnused(plan, layer, layout);
  if (lists_.full_len_offset < 0) {
    WriteRagged(plan, layer, layout);
  } else if (lists_.items_per_list == 1) {
    WriteFull<true>(plan, layer, layout);
  } else {
    WriteFull<false>(plan, layer, layout);
  }
}

/// Other ranks compute the rest of replicated groups; equal plans have equal bytes there, too.
void LayerPlanner::ClearUnused(const StepPlan& plan, std::int64_t layer,
                               const IntLayout& layout) const {
  const auto used = static_cast<std::int64_t>(scheduler_.order().size());
  for (const int array : {1, 2, 3, 4, 5}) {
    const std::int64_t offset = plan.plan_info[layer * 9 + array];
    if (offset == lists_.full_len_offset) continue;
    std::fill_n(layout.At(offset) + used, plan.num_items - used, 0);
  }
}

/// Lists tell all of an item but its head and block, which its index does.
template <bool kOnePerList>
void LayerPlanner::WriteFull(const StepPlan& plan, std::int64_t layer,
                             const IntLayout& layout) const {
  const std::int64_t* const info = plan.plan_info.data() + layer * 9;
  const std::int32_t* const list_indptr = layout.At(plan.list_indptr_offset[layer]);
  const std::int32_t* const block_qo_indptr = layout.At(plan.block_qo_indptr_offset);
  std::int32_t* const qo_indptr = layout.At(info[1]);
  std::int32_t* const kv_indptr = layout.At(info[2]);
  std::int32_t* const kv_len = layout.At(info[4]);
  std::int32_t* const head = layout.At(info[5]);
  const auto num_blocks = static_cast<std::uint32_t>(plan.num_blocks);
  const auto per_list = static_cast<std::uint32_t>(lists_.items_per_list);
  const Reciprocal by_blocks(num_blocks);
  const Reciprocal by_items(per_list);
  const std::int32_t* const order = scheduler_.order().data();
  const std::size_t num_items = scheduler_.order().size();
  for (std::size_t i = 0; i < num_items; ++i) {
    const auto item = static_cast<std::uint32_t>(order[i]);
    const std::uint32_t list = kOnePerList ? item : by_items.Divide(item);
    const std::uint32_t list_head = by_blocks.Divide(list);
    const std::int32_t first = list_indptr[list];
    kv_indptr[i] = first;
    kv_len[i] = (list_indptr[list + 1] - first) * static_cast<std::int32_t>(kPageTokens);
    qo_indptr[i] = block_qo_indptr[list - list_head * num_blocks];
    head[i] = static_cast<std::int32_t>(
        kOnePerList ? list_head : list_head * per_list + item - list * per_list);
  }
}

void LayerPlanner::WriteRagged(const StepPlan& plan, std::int64_t layer,
                               const IntLayout& layout) const {
  const std::int64_t* const info = plan.plan_info.data() + layer * 9;
  const std::int32_t* const list_indptr = layout.At(plan.list_indptr_offset[layer]);
  const Block* const blocks = lists_.predictor.blocks().data();
  std::int32_t* const qo_indptr = layout.At(info[1]);
  std::int32_t* const kv_indptr = layout.At(info[2]);
  std::int32_t* const qo_len = layout.At(info[3]);
  std::int32_t* const kv_len = layout.At(info[4]);
  std::int32_t* const head = layout.At(info[5]);
  const auto num_blocks = static_cast<std::uint32_t>(plan.num_blocks);
  const auto per_list = static_cast<std::uint32_t>(lists_.items_per_list);
  const Reciprocal by_blocks(num_blocks);
  const Reciprocal by_items(per_list);
  const std::int32_t* const order = scheduler_.order().data();
  const std::size_t num_items = scheduler_.order().size();
  for (std::size_t i = 0; i < num_items; ++i) {
    const auto item = static_cast<std::uint32_t>(order[i]);
    const std::uint32_t list = by_items.Divide(item);
    const std::uint32_t list_head = by_blocks.Divide(list);
    const Block& block = blocks[list - list_head * num_blocks];
    const std::int32_t first = list_indptr[list];
    const std::int32_t pages = list_indptr[list + 1] - first;
    qo_indptr[i] = block.qo_indptr;
    kv_indptr[i] = first;
    qo_len[i] = block.qo_len;
    kv_len[i] = pages * static_cast<std::int32_t>(kPageTokens) - block.unused_tokens;
    head[i] = static_cast<std::int32_t>(list_head * per_list + item - list * per_list);
  }
}

void LayerPlanner::Plan(std::int64_t layer, IntLayout* layout, StepPlan* plan) {
  plan->list_indptr_offset[layer] = layout->Add(plan->num_lists + 1);
  RunWriter runs = scheduler_.Begin(static_cast<std::size_t>(plan->num_lists),
                                    static_cast<std::int32_t>(lists_.items_per_list));
  plan->list_pages[layer] =
      FillLists(layer, plan->owned_blocks.data() + layer * lists_.num_list_heads * 2,
                layout->At(plan->list_indptr_offset[layer]), &runs);
  scheduler_.Schedule(WorkMethod::kAuto, runs);
  std::int64_t* const info = plan->plan_info.data() + layer * 9;
  info[0] = lists_.zeros_offset;
  for (const int array : {1, 2, 4, 5}) info[array] = layout->Add(plan->num_items);
  info[3] = lists_.full_len_offset >= 0 ? lists_.full_len_offset : layout->Add(plan->num_items);
  info[6] = layout->Add(lists_.num_ctas + 1);
  info[7] = lists_.zeros_offset;
  info[8] = 0;
  WriteItems(*plan, layer, *layout);
  plan->cta_makespan_ns[layer] =
      *std::max_element(scheduler_.loads().begin(), scheduler_.loads().end());
}

}  // namespace shplb::internal
