// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "int_layout.h"
#include "shplb/step_planner.h"
#include "step_predictor.h"
#include "work_schedule.h"

namespace shplb::internal {

/// Blocks [first, end) that follow each other in one request and are full, or one that is not.
struct Stretch {
  std::int32_t first;
  std::int32_t end;
  std::int32_t full_block;  // of `first` in its request, counted from 0; -1: not full
};

/// What all layers of a step share; layers only read it.
struct StepLists {
  explicit StepLists(const StepPlannerConfig& config);

  std::int64_t PerLayer(std::int64_t num_blocks) const { return num_list_heads * num_blocks; }
  std::int64_t ItemsPerLayer(std::int64_t num_blocks) const {
    return num_list_heads * items_per_list * num_blocks;
  }
  /// Bytes of the arrays that every layer has for itself; without qo_len where layers share it.
  std::int64_t LayerBytes(std::int64_t num_blocks, bool shared_qo_len) const;
  void MakeStretches();
  /// Fills owned_blocks.
  void SetOwned(StepPlan* plan) const;

  std::int64_t num_slots, rank, num_ctas, stride;
  std::int64_t num_list_heads;  // of this rank: query heads, or KV slots under shared lists
  std::int64_t items_per_list;  // query heads that share a list
  std::int64_t lists_per_slot;
  std::int64_t kv_tile;
  std::int64_t full_stride;
  std::vector<std::uint16_t> keep;       // [num_layers, num_list_heads, max_pages + 1]
  std::vector<std::uint16_t> full_keep;  // [num_layers, num_list_heads, full blocks], with forced
  StepPredictor predictor;
  // Of the step.
  std::vector<Stretch> stretches;
  std::int64_t zeros_offset = 0;
  std::int64_t full_len_offset = -1;  // of an array of full blocks' lengths, if all blocks are full

 private:
  void FillFull(const StepPlannerConfig& c, const std::uint16_t* row);
};

/// Plans one layer after another; the scratch that takes is its own. One object per thread.
class LayerPlanner {
 public:
  LayerPlanner(const StepLists& lists, const CostModel& cost);
  /// Writes the layer's tables into `layout`, and what the plan says of the layer into `plan`.
  void Plan(std::int64_t layer, IntLayout* layout, StepPlan* plan);

 private:
  /// Adds all lists of a layer to `runs`; returns their pages.
  std::int64_t FillLists(std::int64_t layer, const std::int32_t* owned, std::int32_t* list_indptr,
                         RunWriter* runs) const;
  template <std::uint32_t kTile>
  std::int64_t FillLists(std::int64_t layer, const std::int32_t* owned, std::int32_t* list_indptr,
                         RunWriter* runs) const;
  void WriteItems(const StepPlan& plan, std::int64_t layer, const IntLayout& layout) const;
  void ClearUnused(const StepPlan& plan, std::int64_t layer, const IntLayout& layout) const;
  template <bool kOnePerList>
  void WriteFull(const StepPlan& plan, std::int64_t layer, const IntLayout& layout) const;
  void WriteRagged(const StepPlan& plan, std::int64_t layer, const IntLayout& layout) const;

  const StepLists& lists_;
  WorkScheduler scheduler_;
};

}  // namespace shplb::internal
