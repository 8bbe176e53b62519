// SPDX-License-Identifier: Apache-2.0
#include "replica_layer.h"

#include <algorithm>
#include <numeric>

namespace shplb::internal {

std::int64_t ReplicaLayer::Evaluate(std::size_t count) {
  rank_load.assign(static_cast<std::size_t>(num_ranks), 0);
  shared.clear();
  for (std::size_t i = 0; i < count; ++i) {
    if (!seat[i].copied()) {
      rank_load[seat[i].rank[0]] += load[i];
      continue;
    }
    const std::int64_t half = load[i] / 2;
    shared.push_back({{seat[i].rank[0], seat[i].rank[1]}, {half, load[i] - half}});
    rank_load[seat[i].rank[0]] += half;
    rank_load[seat[i].rank[1]] += load[i] - half;
  }
  const RankSpeeds nominal;
  LevelPairs(shared, rank_load, nominal);
  leveller.Level(shared, rank_load, nominal);
  return *std::max_element(rank_load.begin(), rank_load.end());
}

void SortUnits(std::span<const std::int64_t> loads, ReplicaLayer* layer) {
  layer->unit.resize(loads.size());
  layer->load.resize(loads.size());
  std::iota(layer->unit.begin(), layer->unit.end(), 0);
  std::sort(layer->unit.begin(), layer->unit.end(), [&](std::int32_t a, std::int32_t b) {
    return loads[a] != loads[b] ? loads[a] > loads[b] : a < b;
  });
  for (std::size_t i = 0; i < loads.size(); ++i) layer->load[i] = loads[layer->unit[i]];
}

std::int64_t ReplicaBound(const ReplicaLayer& layer) {
  const std::int64_t ranks = layer.num_ranks;
  const auto units = static_cast<std::int64_t>(layer.load.size());
  const std::int64_t sum = std::accumulate(layer.load.begin(), layer.load.end(), std::int64_t{0});
  std::int64_t bound = (sum + ranks - 1) / ranks;
  const bool all_whole = layer.num_copied == 0;
  bound = std::max(bound, all_whole ? layer.load[0] : (layer.load[0] + 1) / 2);
  // Of the num_copied + k * ranks + 1 longest units, k * ranks + 1 or more have no copy, so that
  // some rank has k + 1 of them, the shortest at best.
  for (std::int64_t k = 0; layer.num_copied + k * ranks < units; ++k) {
    std::int64_t least = 0;
    for (std::int64_t i = 0; i <= k; ++i) least += layer.load[layer.num_copied + k * ranks - i];
    bound = std::max(bound, least);
  }
  return bound;
}

namespace {

/// A unit, or half of one that is copied.
struct Part {
  std::int64_t load;
  std::int32_t at;  // sorted position of the unit
};

void Sit(ReplicaLayer* layer, std::vector<std::int32_t>* room, const Part& part,
         std::int32_t rank) {
  Seat& seat = layer->seat[part.at];
  seat.rank[seat.rank[0] < 0 ? 0 : 1] = rank;
  layer->rank_load[rank] += part.load;
  --(*room)[rank];
}

/// Every rank with room holds the unit already: another rank takes it, for a unit that goes there.
void SitByExchange(ReplicaLayer* layer, std::vector<std::int32_t>* room, const Part& part) {
  const auto open = static_cast<std::int32_t>(
      std::find_if(room->begin(), room->end(), [](std::int32_t r) { return r > 0; }) -
      room->begin());
  for (Seat& seat : layer->seat) {
    for (std::int32_t& rank : seat.rank) {
      if (rank < 0 || seat.on(open) || layer->seat[part.at].on(rank)) continue;
      const std::int32_t freed = rank;
      rank = open;
      layer->seat[part.at].rank[1] = freed;
      --(*room)[open];
      return;
    }
  }
}

}  // namespace

void PlaceGreedily(ReplicaLayer* layer) {
  std::vector<Part> parts;
  const auto units = static_cast<std::int32_t>(layer->load.size());
  for (std::int32_t i = 0; i < units; ++i) {
    const bool copied = i < layer->num_copied;
    parts.insert(parts.end(), copied ? 2 : 1, {copied ? layer->load[i] / 2 : layer->load[i], i});
  }
  std::sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) {
    return a.load != b.load ? a.load > b.load : a.at < b.at;
  });
  layer->seat.assign(layer->load.size(), Seat{});
  layer->rank_load.assign(static_cast<std::size_t>(layer->num_ranks), 0);
  std::vector<std::int32_t> room(static_cast<std::size_t>(layer->num_ranks),
                                 static_cast<std::int32_t>(layer->num_slots));
  for (const Part& part : parts) {
    std::int32_t best = -1;
    for (std::int32_t rank = 0; rank < layer->num_ranks; ++rank) {
      if (room[rank] == 0 || layer->seat[part.at].on(rank)) continue;
      if (best < 0 || layer->rank_load[rank] < layer->rank_load[best]) best = rank;
    }
    if (best >= 0) {
      Sit(layer, &room, part, best);
    } else {
      SitByExchange(layer, &room, part);
    }
  }
}

}  // namespace shplb::internal
