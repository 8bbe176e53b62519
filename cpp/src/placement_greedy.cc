// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdlib>

#include "placement_layer.h"

namespace shplb::internal {

namespace {

std::int32_t MostLoaded(const LayerPlacement& layer) {
  const auto most = std::max_element(layer.rank_load.begin(), layer.rank_load.end());
  return static_cast<std::int32_t>(most - layer.rank_load.begin());
}

struct Exchange {
  std::int64_t largest;  // larger load of the two ranks afterwards
  std::int32_t from;     // position on the most loaded rank
  std::int32_t to;       // position on another rank, or -1 for a move
  std::int32_t rank;     // that other rank
};

void Consider(const LayerPlacement& layer, std::int32_t most, std::int64_t delta, Exchange exchange,
              Exchange* best) {
  exchange.largest =
      std::max(layer.rank_load[most] - delta, layer.rank_load[exchange.rank] + delta);
  if (exchange.largest < best->largest) *best = exchange;
}

Exchange BestExchange(const LayerPlacement& layer, std::int32_t most) {
  Exchange best{layer.rank_load[most], -1, -1, -1};
  const auto num_units = static_cast<std::int32_t>(layer.load.size());
  for (std::int32_t from = 0; from < num_units; ++from) {
    if (layer.rank[from] != most) continue;
    for (std::int32_t to = from + 1; to < num_units; ++to) {
      if (layer.rank[to] == most || layer.load[to] == layer.load[from]) continue;
      Consider(layer, most, layer.load[from] - layer.load[to], {0, from, to, layer.rank[to]},
               &best);
    }
    if (layer.equal_count) continue;
    for (std::int32_t rank = 0; rank < layer.num_ranks; ++rank) {
      if (rank != most) Consider(layer, most, layer.load[from], {0, from, -1, rank}, &best);
    }
  }
  return best;
}

}  // namespace

void CountRanks(LayerPlacement* layer) {
  layer->rank_load.assign(static_cast<std::size_t>(layer->num_ranks), 0);
  layer->rank_count.assign(static_cast<std::size_t>(layer->num_ranks), 0);
  for (std::size_t i = 0; i < layer->load.size(); ++i) {
    layer->rank_load[layer->rank[i]] += layer->load[i];
    ++layer->rank_count[layer->rank[i]];
  }
}

std::int64_t LowerBound(const LayerPlacement& layer) {
  const auto num_units = static_cast<std::int64_t>(layer.load.size());
  const std::int64_t ranks = layer.num_ranks;
  std::int64_t sum = 0;
  for (const std::int64_t load : layer.load) sum += load;
  std::int64_t bound = sum / ranks + (sum % ranks != 0 ? 1 : 0);
  // Of the k * ranks + 1 largest units some rank has k + 1, so at least the k + 1 smallest of
  // these; under equal counts the rest of that rank is no smaller than the smallest units of all.
  const std::int64_t fill = layer.equal_count ? layer.capacity : 0;
  for (std::int64_t k = 0; k * ranks < num_units; ++k) {
    std::int64_t together = 0;
    for (std::int64_t i = 0; i <= k; ++i) together += layer.load[k * ranks - i];
    for (std::int64_t i = 0; i < fill - k - 1; ++i) together += layer.load[num_units - 1 - i];
    bound = std::max(bound, together);
  }
  return bound;
}

void PlaceLongestFirst(LayerPlacement* layer) {
  layer->rank_load.assign(static_cast<std::size_t>(layer->num_ranks), 0);
  layer->rank_count.assign(static_cast<std::size_t>(layer->num_ranks), 0);
  for (std::size_t i = 0; i < layer->load.size(); ++i) {
    std::int32_t best = -1;
    for (std::int32_t rank = 0; rank < layer->num_ranks; ++rank) {
      if (layer->rank_count[rank] >= layer->capacity) continue;
      if (best < 0 || layer->rank_load[rank] < layer->rank_load[best]) best = rank;
    }
    layer->rank[i] = best;
    layer->rank_load[best] += layer->load[i];
    ++layer->rank_count[best];
  }
}

void PlaceSnake(LayerPlacement* layer) {
  for (std::size_t i = 0; i < layer->load.size(); ++i) {
    const auto at = static_cast<std::int64_t>(i);
    const std::int64_t column = at % layer->num_ranks;
    const bool back = (at / layer->num_ranks) % 2 == 1;
    layer->rank[i] = static_cast<std::int32_t>(back ? layer->num_ranks - 1 - column : column);
  }
  CountRanks(layer);
}

void PlaceContiguous(LayerPlacement* layer) {
  const auto num_units = static_cast<std::int64_t>(layer->load.size());
  for (std::size_t i = 0; i < layer->load.size(); ++i) {
    layer->rank[i] = static_cast<std::int32_t>(layer->unit[i] * layer->num_ranks / num_units);
  }
  CountRanks(layer);
}

void ImproveBySwaps(LayerPlacement* layer, std::int64_t bound) {
  for (;;) {
    const std::int32_t most = MostLoaded(*layer);
    if (layer->rank_load[most] <= bound) return;
    const Exchange best = BestExchange(*layer, most);
    if (best.rank < 0) return;
    const std::int64_t delta = layer->load[best.from] - (best.to < 0 ? 0 : layer->load[best.to]);
    layer->rank[best.from] = best.rank;
    if (best.to >= 0) layer->rank[best.to] = most;
    if (best.to < 0) {
      --layer->rank_count[most];
      ++layer->rank_count[best.rank];
    }
    layer->rank_load[most] -= delta;
    layer->rank_load[best.rank] += delta;
  }
}

}  // namespace shplb::internal
