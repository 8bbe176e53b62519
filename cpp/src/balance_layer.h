// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "budget_curve.h"

namespace shplb::internal {

/// The heads of one layer, and what they gain when no rank may exceed a ceiling.
class BalanceLayer {
 public:
  /// Curves [num_heads], empty for inert heads; the heads of a KV group follow each other.
  BalanceLayer(std::vector<GainCurve> curves, std::int64_t num_groups, std::int64_t num_ranks);

  std::int64_t num_groups() const { return static_cast<std::int64_t>(groups_.size()); }
  std::int64_t num_ranks() const { return num_ranks_; }

  /// Largest gain as a function of the ceiling on every rank's summed density: concave but for
  /// rounding, from the least ceiling that the floors allow to the one that makes all heads dense.
  GainCurve CurveOf(std::span<const std::int32_t> group_to_rank) const;

  /// Densities [num_heads] with the largest gain under a ceiling; 0 for inert heads.
  void Fill(std::span<const std::int32_t> group_to_rank, std::int64_t ceiling,
            std::span<std::int64_t> density) const;

 private:
  std::vector<GainCurve> curves_;
  std::vector<GainCurve> groups_;  // sums of the group's hulls
  std::int64_t num_ranks_;
};

}  // namespace shplb::internal
