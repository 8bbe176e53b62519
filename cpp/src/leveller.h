// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "rank_speeds.h"

namespace shplb::internal {

/// Work that either of two ranks can do, ns: `at[0]` of it lies with rank[0], `at[1]` with rank[1].
struct SharedLoad {
  std::int32_t rank[2];
  std::int64_t at[2];

  std::int64_t total() const { return at[0] + at[1]; }
};

/// Moves shared work between its two ranks until the slowest rank takes as little time as it can.
/// Keeps its scratch. One object per thread.
///
/// A set of ranks whose shared work with other ranks lies with those others can't do with less time
/// than its work takes all of them together: that is the ceiling's certificate. Starting from that
/// of all ranks, work flows along shortest paths from ranks above the ceiling to ranks below it;
/// where no path is left, the ranks that were reached are such a set, and the ceiling rises to
/// theirs (Dinkelbach 1967, over augmenting paths). Whole ns throughout.
class Leveller {
 public:
  /// load[rank]: work of each rank, shared work counted where it lies; updated with `shared`.
  /// slack: ns of work that a rank may have above the optimum.
  /// Returns the ceiling, a lower bound on the slowest rank's time that is met up to slack.
  std::int64_t Level(std::span<SharedLoad> shared, std::span<std::int64_t> load,
                     const RankSpeeds& speeds, std::int64_t slack = 0);

 private:
  void SetCeiling(std::int64_t ceiling, const RankSpeeds& speeds);
  /// Shortest way for work from `rank` to a rank below the ceiling, in from_; -1: none.
  std::int32_t FindSink(std::span<const SharedLoad> shared, std::span<const std::int64_t> load,
                        std::int32_t rank);
  void Push(std::span<SharedLoad> shared, std::span<std::int64_t> load, std::int32_t rank,
            std::int32_t sink);

  struct Step {
    std::int32_t shared = -1;  // the work that moves
    std::int32_t side = 0;     // whose it was
  };
  std::vector<std::int64_t> room_;        // [num_ranks], work that a rank can do below the ceiling
  std::vector<Step> from_;                // [num_ranks], how a rank was reached
  std::vector<std::int32_t> reached_;     // in order
  std::vector<std::uint8_t> is_reached_;  // [num_ranks]
};

/// One pass of levelling each pair of ranks by itself: cheap, and most of the way.
void LevelPairs(std::span<SharedLoad> shared, std::span<std::int64_t> load,
                const RankSpeeds& speeds);

}  // namespace shplb::internal
