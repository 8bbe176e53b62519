// SPDX-License-Identifier: Apache-2.0
#include "rank_speeds.h"

namespace shplb::internal {

std::int64_t RankSpeeds::Slowest(std::span<const std::int64_t> load) const {
  if (nominal_) return *std::max_element(load.begin(), load.end());
  std::size_t last = 0;  // by products, since a division per rank would take most of the time
  for (std::size_t rank = 1; rank < load.size(); ++rank) {
    if (load[rank] * speed_[last] > load[last] * speed_[rank]) last = rank;
  }
  return Time(static_cast<std::int64_t>(last), load[last]);
}

std::int64_t RankSpeeds::TimeTogether(std::span<const std::int32_t> ranks,
                                      std::int64_t work) const {
  const auto count = static_cast<std::int64_t>(ranks.size());
  if (nominal_) return (work + count - 1) / count;
  std::int64_t speed = 0;
  for (const std::int32_t rank : ranks) speed += speed_[rank];
  std::int64_t time = (work * kNominalSpeed + speed - 1) / speed;
  // Each rank's work is whole: rounded down, it can leave a few ns undone.
  for (;; ++time) {
    std::int64_t done = 0;
    for (const std::int32_t rank : ranks) done += Work(rank, time);
    if (done >= work) return time;
  }
}

}  // namespace shplb::internal
