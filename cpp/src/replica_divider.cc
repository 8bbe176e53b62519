// SPDX-License-Identifier: Apache-2.0
#include "replica_divider.h"

#include <algorithm>

namespace shplb::internal {

namespace {

/// The optimum is met up to this part of the mean load: less than half an item in most steps.
constexpr std::int64_t kSlack = 1024;
/// Replicas are cut again while a rank is above the optimum by more than this part of it.
constexpr std::int64_t kEnough = 256;
constexpr int kMostRounds = 4;
/// Of a share: it is in 2^-16.
constexpr int kShareBits = 16;

std::int64_t PartOf(std::int64_t total, std::int64_t share) {
  return (total >> kShareBits) * share;
}

}  // namespace

ReplicaDivider::ReplicaDivider(const StepPlannerConfig& c, const LoadTables& tables)
    : tables_(tables),
      most_(tables.cells_per_layer() - c.num_ranks),
      num_layers_(c.num_layers),
      num_ranks_(c.num_ranks),
      max_tokens_(c.max_pages * kPageTokens),
      kv_tile_(TileShapeOf(c.head_dim).kv_tokens),
      item_ns_(c.cost.item_ns),
      kv_tile_ns_(c.cost.kv_tile_ns),
      list_heads_(c.shared_lists ? 1 : c.num_qo_heads / c.num_kv_heads),
      items_per_list_(c.num_qo_heads / c.num_kv_heads / list_heads_),
      stride_(c.max_pages + 1),
      sum_stride_(c.max_pages * kPageTokens / tables.query_block() + 1) {
  if (!any()) return;
  const auto replicas = static_cast<std::size_t>(c.num_layers * most_);
  cuts_.resize(replicas);
  shared_.reserve(static_cast<std::size_t>(most_));
  FillTables(c);
  FindShares(RankSpeeds(), &shares_);
}

void ReplicaDivider::FillTables(const StepPlannerConfig& c) {
  const std::int64_t replicas = c.num_layers * most_;
  const std::int64_t block_pages = tables_.query_block() / kPageTokens;
  sums_.assign(static_cast<std::size_t>(replicas * sum_stride_), 0);
  kept_.assign(static_cast<std::size_t>(replicas * list_heads_ * stride_), 0);
  const std::int64_t group_size = c.num_qo_heads / c.num_kv_heads;
  for (std::int64_t layer = 0; layer < c.num_layers; ++layer) {
    const auto groups = tables_.replicas(layer);
    for (std::size_t k = 0; k < groups.size(); ++k) {
      const std::int64_t replica = layer * most_ + static_cast<std::int64_t>(k);
      const std::int64_t cell = tables_.ReplicaCell(layer, k);
      std::int64_t* const sums = sums_.data() + replica * sum_stride_;
      for (std::int64_t b = 0; b + 1 < sum_stride_; ++b) {
        sums[b + 1] = sums[b] + tables_.BlockLoads((b + 1) * block_pages)[cell];
      }
      for (std::int64_t head = 0; head < group_size; ++head) {
        const std::int32_t* const from =
            c.keep_pages.data() +
            (layer * c.num_qo_heads + groups[k].group * group_size + head) * stride_;
        std::uint16_t* const to =
            kept_.data() + (replica * list_heads_ + head / items_per_list_) * stride_;
        for (std::int64_t n = 1; n < stride_; ++n) {
          const std::int64_t pages = std::max<std::int64_t>(from[n], tables_.ForcedPages(c, n));
          to[n] = std::max(to[n], static_cast<std::uint16_t>(pages));
        }
      }
    }
  }
}

void ReplicaDivider::FindShares(const RankSpeeds& speeds, std::vector<std::int64_t>* shares) {
  shares->assign(static_cast<std::size_t>(num_layers_ * most_), 1 << (kShareBits - 1));
  std::vector<std::int64_t> sums(static_cast<std::size_t>(tables_.num_cells()));
  std::vector<std::int64_t> load(static_cast<std::size_t>(num_ranks_));
  tables_.AddLoads({0, max_tokens_}, 1, sums);
  for (std::int64_t layer = 0; layer < num_layers_; ++layer) {
    Share(layer, sums, *shares, load);
    LevelPairs(shared_, load, speeds);
    leveller_.Level(shared_, load, speeds);
    for (std::size_t k = 0; k < shared_.size(); ++k) {
      const std::int64_t total = std::max<std::int64_t>(shared_[k].total(), 1);
      (*shares)[layer * most_ + static_cast<std::int64_t>(k)] =
          (shared_[k].at[0] << kShareBits) / total;
    }
  }
}

void ReplicaDivider::Share(std::int64_t layer, std::span<const std::int64_t> sums,
                           std::span<const std::int64_t> shares, std::span<std::int64_t> load) {
  const auto replicas = tables_.replicas(layer);
  std::copy_n(sums.begin() + layer * tables_.cells_per_layer(), num_ranks_, load.begin());
  shared_.clear();
  for (std::size_t k = 0; k < replicas.size(); ++k) {
    const Replica& r = replicas[k];
    const std::int64_t total = sums[tables_.ReplicaCell(layer, k)];
    const std::int64_t part = PartOf(total, shares[layer * most_ + static_cast<std::int64_t>(k)]);
    shared_.push_back({{r.rank[0], r.rank[1]}, {part, total - part}});
    load[r.rank[0]] += part;
    load[r.rank[1]] += total - part;
  }
}

void ReplicaDivider::Estimate(std::int64_t layer, std::span<const std::int64_t> sums,
                              std::span<std::int64_t> load) const {
  const auto replicas = tables_.replicas(layer);
  std::copy_n(sums.begin() + layer * tables_.cells_per_layer(), num_ranks_, load.begin());
  for (std::size_t k = 0; k < replicas.size(); ++k) {
    const std::int64_t total = sums[tables_.ReplicaCell(layer, k)];
    const std::int64_t part = PartOf(total, shares_[layer * most_ + static_cast<std::int64_t>(k)]);
    load[replicas[k].rank[0]] += part;
    load[replicas[k].rank[1]] += total - part;
  }
}

void ReplicaDivider::Divide(std::int64_t layer, std::span<const std::int64_t> sums,
                            std::span<const BlockRange> ranges, const RankSpeeds& speeds,
                            std::span<std::int64_t> load) {
  Share(layer, sums, speeds.nominal() ? shares_ : speed_shares_, load);
  if (shared_.empty()) return;
  LevelPairs(shared_, load, speeds);
  std::int64_t sum = 0;
  for (const std::int64_t each : load) sum += each;
  const std::int64_t ceiling = leveller_.Level(shared_, load, speeds, sum / num_ranks_ / kSlack);
  std::int64_t before = INT64_MAX;
  for (int round = 0; round < kMostRounds; ++round) {
    CutReplicas(layer, ranges, speeds, load);
    const std::int64_t most = speeds.Slowest(load);
    if (most <= ceiling + ceiling / kEnough || most >= before) break;
    before = most;
  }
}

/// Cuts have moved the loads by parts of an item: each levels its pair of ranks again.
void ReplicaDivider::CutReplicas(std::int64_t layer, std::span<const BlockRange> ranges,
                                 const RankSpeeds& speeds, std::span<std::int64_t> load) {
  for (std::size_t k = 0; k < shared_.size(); ++k) {
    SharedLoad& s = shared_[k];
    const std::int64_t total = s.total();
    const std::int64_t more = speeds.Excess(s.rank[1], s.rank[0], load);
    const Wanted wanted{std::clamp(s.at[0] + more, std::int64_t{0}, total),
                        {speeds[s.rank[0]], speeds[s.rank[1]]}};
    std::int64_t given = 0;
    cuts_[layer * most_ + static_cast<std::int64_t>(k)] = FindCut(layer, k, ranges, wanted, &given);
    load[s.rank[0]] += given - s.at[0];
    load[s.rank[1]] -= given - s.at[0];
    s.at[0] = given;
    s.at[1] = total - given;
  }
}

Cut ReplicaDivider::FindCut(std::int64_t layer, std::size_t k, std::span<const BlockRange> ranges,
                            const Wanted& wanted, std::int64_t* given) const {
  const std::int64_t* const sums =
      sums_.data() + (layer * most_ + static_cast<std::int64_t>(k)) * sum_stride_;
  const std::int64_t cell = tables_.ReplicaCell(layer, k);
  *given = 0;
  Cut end;
  for (const BlockRange& range : ranges) {
    const std::int64_t first = tables_.FirstBlock(range.extent);
    const std::int64_t last = tables_.EndBlock(range.extent) - 1;
    const std::int64_t full = sums[last] - sums[first];
    const std::int64_t last_load =
        tables_.BlockLoads(tables_.VisiblePages(range.extent, last))[cell];
    if (*given + full + last_load <= wanted.load) {
      *given += full + last_load;
      end = {static_cast<std::int32_t>(range.first_block + last + 1 - first), 0};
      continue;
    }
    // The last block that begins at or before `wanted`.
    const std::int64_t before = sums[first] - *given;
    const std::int64_t block =
        std::upper_bound(sums + first, sums + last + 1, before + wanted.load) - sums - 1;
    *given = sums[block] - before;
    return CutBlock(layer, k, range, block, wanted, given);
  }
  return end;
}

Cut ReplicaDivider::CutBlock(std::int64_t layer, std::size_t k, const BlockRange& range,
                             std::int64_t block, const Wanted& wanted, std::int64_t* given) const {
  const std::int64_t pages = tables_.VisiblePages(range.extent, block);
  const std::int64_t row = (layer * most_ + static_cast<std::int64_t>(k)) * list_heads_;
  Cut cut{static_cast<std::int32_t>(range.first_block + block - tables_.FirstBlock(range.extent)),
          0};
  for (std::int64_t head = 0; head < std::min<std::int64_t>(list_heads_, 64); ++head) {
    const std::int64_t load = ItemLoad(row + head, pages);
    if (!wanted.IsCloserWith(load, *given)) continue;
    *given += load;
    cut.heads |= std::uint64_t{1} << head;
  }
  return cut;
}

std::int64_t ReplicaDivider::ItemLoad(std::int64_t row, std::int64_t visible_pages) const {
  const std::int64_t tokens = kept_[row * stride_ + visible_pages] * kPageTokens;
  return (item_ns_ + kv_tile_ns_ * ((tokens + kv_tile_ - 1) / kv_tile_)) * items_per_list_;
}

}  // namespace shplb::internal
