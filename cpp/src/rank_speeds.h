// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "shplb/step_planner.h"

namespace shplb::internal {

/// Turns work (ns by the cost model) into the time that a rank takes for it, and back. In whole ns;
/// at nominal speed both are the same, up to 2^62, else up to 2^51.
class RankSpeeds {
 public:
  /// Any number of ranks at nominal speed.
  RankSpeeds() = default;

  /// speeds[num_ranks], within [kLeastSpeed, kMostSpeed].
  void Set(std::span<const std::int64_t> speeds) {
    speed_.assign(speeds.begin(), speeds.end());
    nominal_ = std::all_of(speeds.begin(), speeds.end(),
                           [](std::int64_t speed) { return speed == kNominalSpeed; });
  }

  bool nominal() const { return nominal_; }
  std::int64_t operator[](std::int64_t rank) const {
    return nominal_ ? kNominalSpeed : speed_[rank];
  }

  /// What the rank gets done in `time`.
  std::int64_t Work(std::int64_t rank, std::int64_t time) const {
    return nominal_ ? time : time * speed_[rank] / kNominalSpeed;
  }

  /// Least time in which the rank gets `work` done.
  std::int64_t Time(std::int64_t rank, std::int64_t work) const {
    return nominal_ ? work : (work * kNominalSpeed + speed_[rank] - 1) / speed_[rank];
  }

  /// Time of the rank that takes longest for its load.
  std::int64_t Slowest(std::span<const std::int64_t> load) const;

  /// Least time in which `ranks` get `work` done together.
  std::int64_t TimeTogether(std::span<const std::int32_t> ranks, std::int64_t work) const;

  /// Work that `from` must hand to `to` for both to end together; negative: the other way.
  std::int64_t Excess(std::int64_t from, std::int64_t to,
                      std::span<const std::int64_t> load) const {
    if (nominal_) return (load[from] - load[to]) / 2;
    return (load[from] * speed_[to] - load[to] * speed_[from]) / (speed_[from] + speed_[to]);
  }

 private:
  std::vector<std::int64_t> speed_;  // [num_ranks], once set
  bool nominal_ = true;
};

}  // namespace shplb::internal
