// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "shplb/step_planner.h"

namespace shplb::internal {

/// Largest load (ns) of all heads of one query block; sums of two fit uint32.
inline constexpr std::int64_t kMaxBlockLoad = std::int64_t{1} << 31;
inline constexpr std::int64_t kMaxStepBlocks = std::int64_t{1} << 20;

/// A KV group that two ranks hold: they divide its query blocks.
struct Replica {
  std::int32_t group;
  std::int32_t rank[2];  // ascending
  std::int32_t slot[2];
};

/// New tokens of one request.
struct Extent {
  std::int64_t prefix;
  std::int64_t end;  // prefix + new tokens
};

/// Loads of every rank, tabulated over visible pages, so that a step costs a few row sums.
/// Column of a table: cell = layer * cells_per_layer + c, where c < num_ranks is the work that only
/// rank c can do and c = num_ranks + k the work of the layer's k-th replica.
class LoadTables {
 public:
  explicit LoadTables(const StepPlannerConfig& config);

  std::int64_t num_cells() const { return num_cells_; }
  std::int64_t cells_per_layer() const { return cells_per_layer_; }
  std::span<const Replica> replicas(std::int64_t layer) const { return replicas_[layer]; }
  std::int64_t ReplicaCell(std::int64_t layer, std::size_t k) const {
    return layer * cells_per_layer_ + num_ranks_ + static_cast<std::int64_t>(k);
  }

  std::int64_t query_block() const { return query_block_; }
  std::int64_t FirstBlock(const Extent& e) const { return e.prefix / query_block_; }
  std::int64_t EndBlock(const Extent& e) const { return (e.end - 1) / query_block_ + 1; }
  /// Pages that a block sees: up to its last row, or the request's.
  std::int64_t VisiblePages(const Extent& e, std::int64_t block) const;

  /// Items' loads of a block that sees n pages, summed per cell [num_cells], ns.
  std::span<const std::uint32_t> BlockLoads(std::int64_t n) const { return Row(block_loads_, n); }
  /// Largest value of that table, >= 1.
  std::int64_t LargestBlockLoad() const { return largest_block_load_; }
  /// Longest item of such a block per cell [num_cells], ns.
  std::span<const std::uint32_t> LongestItems(std::int64_t n) const { return Row(longest_, n); }

  /// sums[cell] += sign * loads of the request's items.
  void AddLoads(const Extent& e, std::int64_t sign, std::span<std::int64_t> sums) const;
  /// longest[cell] = max with the request's longest item.
  void RaiseLongest(const Extent& e, std::span<std::int64_t> longest) const;
  /// Summed load on the stock path, per layer and rank, ns over all CTAs.
  std::int64_t DenseLoad(const Extent& e) const;
  /// Sum of visible pages over the request's blocks.
  std::int64_t VisibleSum(const Extent& e) const;
  /// Pages that a block which sees n keeps whatever the budget.
  std::int64_t ForcedPages(const StepPlannerConfig& config, std::int64_t n) const;

 private:
  template <class T>
  std::span<const T> Row(const std::vector<T>& table, std::int64_t n) const {
    return {table.data() + n * num_cells_, static_cast<std::size_t>(num_cells_)};
  }
  void FindReplicas(const StepPlannerConfig& config);
  void FillGroup(const StepPlannerConfig& config, std::int64_t layer, std::int64_t group,
                 std::int64_t cell);
  void FillPrefixSums(const StepPlannerConfig& config);

  std::int64_t num_ranks_;
  std::int64_t query_block_;
  std::int64_t block_pages_;
  std::int64_t kv_tile_;
  std::int64_t cells_per_layer_ = 0;
  std::int64_t num_cells_ = 0;
  std::int64_t largest_block_load_ = 1;
  std::vector<std::vector<Replica>> replicas_;  // [num_layers]
  std::vector<std::uint32_t> block_loads_;      // [max_pages + 1, num_cells]
  std::vector<std::uint32_t> longest_;          // [max_pages + 1, num_cells]
  bool longest_rises_ = false;                  // with visible pages, in every cell
  std::vector<std::int64_t> prefix_sums_;       // [full blocks + 1, num_cells]
  std::vector<std::int64_t> dense_sums_;        // [full blocks + 1]
  std::vector<std::int64_t> dense_loads_;       // [max_pages + 1]
};

/// Throws InvalidArgument naming the field.
void Validate(const StepPlannerConfig& config);

/// Pages that must be kept by rows [first_row, end_row) of a request: sink, local and diagonal.
inline std::int64_t NumForcedPages(std::int64_t first_row, std::int64_t end_row,
                                   std::int64_t sink_pages, std::int64_t local_pages) {
  const std::int64_t first = first_row / kPageTokens - local_pages;
  const std::int64_t first_local = first > 0 ? first : 0;
  const std::int64_t sink = sink_pages < first_local ? sink_pages : first_local;
  return sink + (end_row + kPageTokens - 1) / kPageTokens - first_local;
}

}  // namespace shplb::internal
