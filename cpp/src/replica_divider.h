// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "leveller.h"
#include "shplb/step_planner.h"
#include "step_tables.h"

namespace shplb::internal {

/// New tokens of one sparse request, and the number of its first block.
struct BlockRange {
  Extent extent;
  std::int32_t first_block;
};

/// Where the items of a replica are cut: its lower rank computes the blocks before `block`, and of
/// that block the list heads of the group whose bit is set (of the first 64); the other rank the
/// rest.
struct Cut {
  std::int32_t block = 0;
  std::uint64_t heads = 0;

  std::int32_t EndOf(std::int64_t head) const {
    return block + (head < 64 && (heads >> head & 1) != 0 ? 1 : 0);
  }
};

/// Divides the items of replicated groups between their two ranks, layer by layer. Scratch and
/// tables of its own; from loads alone, so equal on every rank.
class ReplicaDivider {
 public:
  ReplicaDivider(const StepPlannerConfig& config, const LoadTables& tables);

  bool any() const { return most_ > 0; }

  /// What Divide will be given, beside nominal speeds.
  void SetRankSpeeds(const RankSpeeds& speeds) { FindShares(speeds, &speed_shares_); }

  /// load[num_ranks] from `sums` [num_cells] with replicas divided as is best in the longest
  /// context: close to what Divide comes to.
  void Estimate(std::int64_t layer, std::span<const std::int64_t> sums,
                std::span<std::int64_t> load) const;

  /// Cuts every replica of a layer such that ranks of these speeds end together as far as can be,
  /// and leaves their loads in `load` [num_ranks].
  void Divide(std::int64_t layer, std::span<const std::int64_t> sums,
              std::span<const BlockRange> ranges, const RankSpeeds& speeds,
              std::span<std::int64_t> load);

  const Cut& cut(std::int64_t layer, std::size_t k) const { return cuts_[layer * most_ + k]; }

 private:
  void FillTables(const StepPlannerConfig& config);
  /// Best division of a prompt as long as the longest context.
  void FindShares(const RankSpeeds& speeds, std::vector<std::int64_t>* shares);
  /// Own work, and replicas as `shares` says.
  void Share(std::int64_t layer, std::span<const std::int64_t> sums,
             std::span<const std::int64_t> shares, std::span<std::int64_t> load);
  void CutReplicas(std::int64_t layer, std::span<const BlockRange> ranges, const RankSpeeds& speeds,
                   std::span<std::int64_t> load);
  /// Load of a replica's lower part at which its two ranks end together, and their speeds.
  struct Wanted {
    std::int64_t load;
    std::int64_t speed[2];

    /// Whether the rank that then ends last ends sooner with more than `given`.
    bool IsCloserWith(std::int64_t more, std::int64_t given) const {
      return (given + more - load) * speed[1] <= (load - given) * speed[0];
    }
  };
  /// The cut whose lower part is closest to `wanted`; that part's load in `given`.
  Cut FindCut(std::int64_t layer, std::size_t k, std::span<const BlockRange> ranges,
              const Wanted& wanted, std::int64_t* given) const;
  /// Adds what of block `block` comes closest to `wanted`.
  Cut CutBlock(std::int64_t layer, std::size_t k, const BlockRange& range, std::int64_t block,
               const Wanted& wanted, std::int64_t* given) const;
  std::int64_t ItemLoad(std::int64_t row, std::int64_t visible_pages) const;

  const LoadTables& tables_;
  std::int64_t most_ = 0;  // replicas of a layer
  std::int64_t num_layers_;
  std::int64_t num_ranks_;
  std::int64_t max_tokens_;
  std::int64_t kv_tile_;
  std::int64_t item_ns_;
  std::int64_t kv_tile_ns_;
  std::int64_t list_heads_;      // of a group
  std::int64_t items_per_list_;  // query heads that share a list
  std::int64_t stride_;          // max_pages + 1
  std::int64_t sum_stride_;      // full blocks + 1
  // Indexed by replica: layer * most_ + k.
  std::vector<std::int64_t> sums_;   // [replicas, sum_stride_], loads of the first full blocks
  std::vector<std::uint16_t> kept_;  // [replicas, list_heads_, stride_], pages, forced ones too
  // [replicas], of the lower rank, in 2^-16; at nominal speed and as set.
  std::vector<std::int64_t> shares_, speed_shares_;
  std::vector<Cut> cuts_;  // [replicas]
  Leveller leveller_;
  std::vector<SharedLoad> shared_;
};

}  // namespace shplb::internal
