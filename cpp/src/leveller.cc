// SPDX-License-Identifier: Apache-2.0
#include "leveller.h"

#include <algorithm>
#include <numeric>

namespace shplb::internal {

namespace {

void Move(SharedLoad* shared, std::int32_t side, std::int64_t amount,
          std::span<std::int64_t> load) {
  shared->at[side] -= amount;
  shared->at[1 - side] += amount;
  load[shared->rank[side]] -= amount;
  load[shared->rank[1 - side]] += amount;
}

}  // namespace

void LevelPairs(std::span<SharedLoad> shared, std::span<std::int64_t> load,
                const RankSpeeds& speeds) {
  for (SharedLoad& s : shared) {
    const std::int64_t excess = speeds.Excess(s.rank[0], s.rank[1], load);
    Move(&s, 0, std::clamp(excess, -s.at[1], s.at[0]), load);
  }
}

std::int64_t Leveller::Level(std::span<SharedLoad> shared, std::span<std::int64_t> load,
                             const RankSpeeds& speeds, std::int64_t slack) {
  from_.resize(load.size());
  is_reached_.resize(load.size());
  room_.resize(load.size());
  reached_.resize(load.size());
  std::iota(reached_.begin(), reached_.end(), 0);
  std::int64_t ceiling =
      speeds.TimeTogether(reached_, std::accumulate(load.begin(), load.end(), std::int64_t{0}));
  SetCeiling(ceiling, speeds);
  for (std::int32_t rank = 0; rank < static_cast<std::int32_t>(load.size()); ++rank) {
    while (load[rank] > room_[rank] + slack) {
      const std::int32_t sink = FindSink(shared, load, rank);
      if (sink >= 0) {
        Push(shared, load, rank, sink);
        continue;
      }
      std::int64_t sum = 0;
      for (const std::int32_t r : reached_) sum += load[r];
      ceiling = speeds.TimeTogether(reached_, sum);
      SetCeiling(ceiling, speeds);
    }
  }
  return ceiling;
}

void Leveller::SetCeiling(std::int64_t ceiling, const RankSpeeds& speeds) {
  for (std::size_t rank = 0; rank < room_.size(); ++rank) {
    room_[rank] = speeds.Work(static_cast<std::int64_t>(rank), ceiling);
  }
}

std::int32_t Leveller::FindSink(std::span<const SharedLoad> shared,
                                std::span<const std::int64_t> load, std::int32_t rank) {
  std::fill(is_reached_.begin(), is_reached_.end(), std::uint8_t{0});
  reached_.assign(1, rank);
  is_reached_[rank] = 1;
  for (std::size_t next = 0; next < reached_.size(); ++next) {
    const std::int32_t at = reached_[next];
    for (std::size_t k = 0; k < shared.size(); ++k) {
      const SharedLoad& s = shared[k];
      const std::int32_t side = s.rank[0] == at ? 0 : 1;
      if (s.rank[side] != at || s.at[side] == 0) continue;
      const std::int32_t other = s.rank[1 - side];
      if (is_reached_[other]) continue;
      from_[other] = {static_cast<std::int32_t>(k), side};
      if (load[other] < room_[other]) return other;
      is_reached_[other] = 1;
      reached_.push_back(other);
    }
  }
  return -1;
}

void Leveller::Push(std::span<SharedLoad> shared, std::span<std::int64_t> load, std::int32_t rank,
                    std::int32_t sink) {
  std::int64_t amount = std::min(load[rank] - room_[rank], room_[sink] - load[sink]);
  for (std::int32_t r = sink; r != rank; r = shared[from_[r].shared].rank[from_[r].side]) {
    amount = std::min(amount, shared[from_[r].shared].at[from_[r].side]);
  }
  for (std::int32_t r = sink; r != rank;) {
    SharedLoad& s = shared[from_[r].shared];
    const std::int32_t side = from_[r].side;
    Move(&s, side, amount, load);
    r = s.rank[side];
  }
}

}  // namespace shplb::internal
