// SPDX-License-Identifier: Apache-2.0
#include "layer_planner.h"

#include <algorithm>

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

LayerPlanner::LayerPlanner(const StepLists& lists, const CostModel& cost) : lists_(lists) {
  scheduler_.Configure(lists.num_ctas, cost.item_ns, cost.kv_tile_ns);
}

/// Items that share a list follow each other, so that the stable sort keeps them together.
void LayerPlanner::BeginStep() {
  const auto blocks = lists_.predictor.blocks();
  const std::size_t num_lists = static_cast<std::size_t>(lists_.num_list_heads) * blocks.size();
  items_.resize(num_lists * static_cast<std::size_t>(lists_.items_per_list));
  placed_.resize(items_.size());
  Item* item = items_.data();
  for (std::int64_t j = 0; j < lists_.num_list_heads; ++j) {
    for (const Block& block : blocks) {
      for (std::int64_t i = 0; i < lists_.items_per_list; ++i) {
        *item++ = {block.qo_indptr, static_cast<std::uint16_t>(j * lists_.items_per_list + i),
                   static_cast<std::uint16_t>(block.qo_len), 0, 0};
      }
    }
  }
  scheduler_.tiles().resize(num_lists);
}

/// Blocks [first, end) of every slot that this rank computes.
void LayerPlanner::SetOwned(std::int64_t layer, StepPlan* plan) const {
  std::int32_t* const owned = plan->owned_blocks.data() + layer * lists_.num_slots * 2;
  for (std::int64_t slot = 0; slot < lists_.num_slots; ++slot) {
    owned[2 * slot] = 0;
    owned[2 * slot + 1] = static_cast<std::int32_t>(plan->num_blocks);
  }
  const auto replicas = lists_.predictor.tables().replicas(layer);
  for (std::size_t k = 0; k < replicas.size(); ++k) {
    if (replicas[k].rank[0] == lists_.rank)
      owned[2 * replicas[k].slot[0] + 1] = lists_.predictor.cut(layer, k);
    if (replicas[k].rank[1] == lists_.rank)
      owned[2 * replicas[k].slot[1]] = lists_.predictor.cut(layer, k);
  }
}

/// Lengths of all lists of a layer; returns their sum in pages.
std::int64_t LayerPlanner::FillLists(std::int64_t layer, const std::int32_t* owned,
                                     std::int32_t* list_indptr) {
  const std::int64_t pages = lists_.kv_tile == 96 ? FillLists<96>(layer, owned, list_indptr)
                                                  : FillLists<32>(layer, owned, list_indptr);
  if (pages > INT32_MAX) {
    throw InvalidArgument("new_lens", ToText(pages) + " page table entries in a layer",
                          "fewer than 2^31");
  }
  list_indptr[items_.size() / static_cast<std::size_t>(lists_.items_per_list)] =
      static_cast<std::int32_t>(pages);
  return pages;
}

template <std::uint32_t kTile>
std::int64_t LayerPlanner::FillLists(std::int64_t layer, const std::int32_t* owned,
                                     std::int32_t* list_indptr) {
  const Block* const blocks = lists_.predictor.blocks().data();
  const auto per_list = static_cast<std::size_t>(lists_.items_per_list);
  std::int32_t* tiles = scheduler_.tiles().data();
  Item* item = items_.data();
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
  for (std::int64_t j = 0; j < lists_.num_list_heads; ++j) {
    const std::uint16_t* const row =
        lists_.keep.data() + (layer * lists_.num_list_heads + j) * lists_.stride;
    const std::uint16_t* const full =
        lists_.full_keep.data() + (layer * lists_.num_list_heads + j) * lists_.full_stride;
    const std::int32_t first = owned[2 * (j / lists_.lists_per_slot)];
    const std::int32_t end = owned[2 * (j / lists_.lists_per_slot) + 1];
    for (const Stretch& s : lists_.stretches) {
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

void LayerPlanner::WriteItems(const std::int64_t* info, const IntLayout& layout) {
  std::int32_t* const qo_indptr = layout.At(info[1]);
  std::int32_t* const kv_indptr = layout.At(info[2]);
  std::int32_t* const qo_len = layout.At(info[3]);
  std::int32_t* const kv_len = layout.At(info[4]);
  std::int32_t* const head = layout.At(info[5]);
  std::copy(scheduler_.indptr().begin(), scheduler_.indptr().end(), layout.At(info[6]));
  // One scattered store per item, then sequential ones: five scattered ones would fall on the same
  // cache sets.
  const Item* const from = items_.data();
  Item* const to = placed_.data();
  scheduler_.ForEachItem([=](std::int32_t position, std::int32_t i) { to[position] = from[i]; });
  for (std::size_t i = 0; i < items_.size(); ++i) {
    const Item item = to[i];
    qo_indptr[i] = item.qo_indptr;
    kv_indptr[i] = item.kv_indptr;
    kv_len[i] = item.kv_len;
    head[i] = item.head;
  }
  if (lists_.full_len_offset >= 0) return;
  for (std::size_t i = 0; i < items_.size(); ++i) qo_len[i] = to[i].qo_len;
}

void LayerPlanner::Plan(std::int64_t layer, IntLayout* layout, StepPlan* plan) {
  SetOwned(layer, plan);
  plan->list_indptr_offset[layer] = layout->Add(plan->num_lists + 1);
  plan->list_pages[layer] =
      FillLists(layer, plan->owned_blocks.data() + layer * lists_.num_slots * 2,
                layout->At(plan->list_indptr_offset[layer]));
  scheduler_.Schedule(WorkMethod::kAuto, static_cast<std::int32_t>(lists_.items_per_list));
  std::int64_t* const info = plan->plan_info.data() + layer * 9;
  info[0] = lists_.zeros_offset;
  for (const int array : {1, 2, 4, 5}) info[array] = layout->Add(plan->num_items);
  info[3] = lists_.full_len_offset >= 0 ? lists_.full_len_offset : layout->Add(plan->num_items);
  info[6] = layout->Add(lists_.num_ctas + 1);
  info[7] = lists_.zeros_offset;
  info[8] = 0;
  WriteItems(info, *layout);
  plan->cta_makespan_ns[layer] =
      *std::max_element(scheduler_.loads().begin(), scheduler_.loads().end());
}

}  // namespace shplb::internal
