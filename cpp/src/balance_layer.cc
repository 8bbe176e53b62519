// SPDX-License-Identifier: Apache-2.0
#include "balance_layer.h"

#include <algorithm>
#include <utility>

namespace shplb::internal {

BalanceLayer::BalanceLayer(std::vector<GainCurve> curves, std::int64_t num_groups,
                           std::int64_t num_ranks)
    : curves_(std::move(curves)), num_ranks_(num_ranks) {
  const std::size_t size = curves_.size() / static_cast<std::size_t>(num_groups);
  for (std::size_t first = 0; first < curves_.size(); first += size) {
    std::vector<GainCurve> real;
    for (std::size_t head = first; head < first + size; ++head) {
      if (!curves_[head].empty()) real.push_back(curves_[head]);
    }
    groups_.push_back(SumOfHulls(real));
  }
}

GainCurve BalanceLayer::CurveOf(std::span<const std::int32_t> group_to_rank) const {
  std::vector<std::vector<GainCurve>> members(static_cast<std::size_t>(num_ranks_));
  for (std::size_t group = 0; group < groups_.size(); ++group) {
    members[static_cast<std::size_t>(group_to_rank[group])].push_back(groups_[group]);
  }
  std::vector<GainCurve> ranks;
  std::vector<std::int64_t> ceilings;
  std::int64_t least = 0;
  for (const std::vector<GainCurve>& groups : members) {
    ranks.push_back(SumOfHulls(groups));
    least = std::max(least, ranks.back().front().density);
    for (const CurvePoint& point : ranks.back()) ceilings.push_back(point.density);
  }
  std::sort(ceilings.begin(), ceilings.end());
  ceilings.erase(std::unique(ceilings.begin(), ceilings.end()), ceilings.end());
  GainCurve layer;
  for (const std::int64_t ceiling : ceilings) {
    if (ceiling < least) continue;
    std::int64_t gain = 0;
    for (const GainCurve& rank : ranks) gain += GainOnGrid(rank, ceiling);
    layer.push_back({ceiling, gain});
  }
  return layer;
}

void BalanceLayer::Fill(std::span<const std::int32_t> group_to_rank, std::int64_t ceiling,
                        std::span<std::int64_t> density) const {
  const std::size_t size = curves_.size() / groups_.size();
  std::fill(density.begin(), density.end(), 0);
  for (std::int32_t rank = 0; rank < num_ranks_; ++rank) {
    std::vector<std::size_t> heads;
    std::vector<GainCurve> curves;
    std::int64_t most = 0;
    for (std::size_t head = 0; head < curves_.size(); ++head) {
      if (group_to_rank[head / size] != rank || curves_[head].empty()) continue;
      heads.push_back(head);
      curves.push_back(curves_[head]);
      most += curves_[head].back().density;
    }
    const std::vector<std::int64_t> filled = MaximiseSum(curves, std::min(ceiling, most));
    for (std::size_t i = 0; i < heads.size(); ++i) density[heads[i]] = filled[i];
  }
}

}  // namespace shplb::internal
