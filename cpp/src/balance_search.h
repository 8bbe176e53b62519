// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "balance_layer.h"

namespace shplb::internal {

/// Worth of a layer's curve, the larger the better.
using CurveScore = std::function<int128(const GainCurve&)>;

/// Every split is tried up to so many; above it exchanges of two groups, up to so many groups.
inline constexpr std::int64_t kMostSplits = 1000;
inline constexpr std::int64_t kMostSearchedGroups = 64;

/// Changes the placement of one layer, equal counts kept, to the best one found if it scores
/// higher than the given one. Ties keep what came first.
void ImproveSplit(const BalanceLayer& layer, const CurveScore& score,
                  std::span<std::int32_t> group_to_rank);

/// Ranks in the order of their lowest group.
void NameByLowestGroup(std::int64_t num_ranks, std::span<std::int32_t> group_to_rank);

}  // namespace shplb::internal
