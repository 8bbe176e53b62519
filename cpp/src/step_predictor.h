// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "rank_speeds.h"
#include "replica_divider.h"
#include "shplb/step_planner.h"
#include "step_tables.h"

namespace shplb::internal {

/// One query block of a sparse request.
struct Block {
  std::int32_t request;
  std::int32_t first_row;  // position in the request
  std::int32_t qo_indptr;  // row of q
  std::int32_t qo_len;     // rows
  std::int32_t visible_pages;
  std::int32_t forced_pages;
  std::int32_t unused_tokens;  // of the last visible page
};

/// What page selection reads, per head.
struct SelectionWork {
  std::int64_t pairs = 0;   // (query block, visible page)
  std::int64_t blocks = 0;  // query blocks
  std::int64_t pages = 0;   // of the whole contexts

  void Add(const SelectionWork& other) {
    pairs += other.pairs;
    blocks += other.blocks;
    pages += other.pages;
  }
};

/// What does not depend on the table contents: which requests run sparse, how replicated groups
/// are cut, and how long each rank will take. Equal on every rank.
class StepPredictor {
 public:
  explicit StepPredictor(const StepPlannerConfig& config);

  const LoadTables& tables() const { return tables_; }
  std::int64_t num_layers() const { return num_layers_; }

  void SetRankSpeeds(std::span<const std::int64_t> speeds) {
    speeds_.Set(speeds);
    if (divider_.any()) divider_.SetRankSpeeds(speeds_);
  }

  /// Fills sparse, num_blocks, step_ns, dense_ns and rank_makespan_ns of the plan, and blocks() and
  /// cuts().
  void Run(std::span<const std::int64_t> prefix_lens, std::span<const std::int64_t> new_lens,
           StepMode mode, StepPlan* plan, std::span<const std::uint8_t> stock);

  void DecodeLoads(std::span<const std::int64_t> kv_lens, std::span<std::int64_t> loads);

  std::span<const Block> blocks() const { return blocks_; }
  const Cut& cut(std::int64_t layer, std::size_t k) const { return divider_.cut(layer, k); }

 private:
  void CheckBatch(std::span<const std::int64_t> prefix_lens, std::span<const std::int64_t> new_lens,
                  std::span<const std::uint8_t> stock);
  void Choose(StepMode mode, std::span<const std::uint8_t> stock, StepPlan* plan);
  void Start(const StepPlan& plan);
  void DropStarved(StepPlan* plan);
  bool PaysAlone(std::size_t request);
  SelectionWork SelectionOf(const Extent& e) const;
  void MakeBlocks(StepPlan* plan);
  void MakeDense(StepPlan* plan);
  bool PaysAnyhow(const StepPlan& plan);
  void Divide(const RankSpeeds& speeds, StepPlan* plan);
  std::int64_t PredictRanks(std::int64_t layer, const RankSpeeds& speeds, StepPlan* plan);
  std::int64_t StepCost(const StepPlan& plan);
  std::int64_t SparseCost();
  std::int64_t SelectionTime() const;
  std::int64_t DenseCost(std::size_t request) const;
  std::int64_t DenseRest(const StepPlan& plan) const;
  std::int64_t SelectCost(const SelectionWork& work) const;
  std::int64_t LayerMakespan(std::int64_t layer);
  std::int64_t MakespanOf(std::int64_t sum, std::int64_t longest) const {
    return std::max((sum + num_ctas_ - 1) / num_ctas_, longest);
  }

  LoadTables tables_;
  ReplicaDivider divider_;
  std::int64_t num_layers_;
  std::int64_t num_ranks_;
  std::int64_t num_ctas_;
  std::int64_t max_tokens_;
  std::int64_t kv_heads_per_rank_;
  std::int64_t qo_heads_per_rank_;
  std::int64_t sink_pages_;
  std::int64_t local_pages_;
  CostModel cost_;
  RankSpeeds speeds_;
  // Scratch of one step.
  std::vector<Extent> extents_;             // [num_requests]
  std::vector<std::int64_t> rows_;          // [num_requests], first row of q
  std::vector<std::int64_t> sums_;          // [num_cells], of the sparse requests
  std::vector<std::int64_t> longest_;       // [num_cells], of the sparse requests
  std::vector<std::int64_t> one_;           // [num_cells]
  std::vector<std::uint32_t> part_;         // [num_cells]
  std::vector<std::int64_t> rank_sum_;      // [num_ranks]
  std::vector<std::int64_t> rank_longest_;  // [num_ranks]
  SelectionWork selection_;                 // of the sparse requests
  std::vector<Block> blocks_;
  std::vector<BlockRange> ranges_;  // of the sparse requests
};

}  // namespace shplb::internal
