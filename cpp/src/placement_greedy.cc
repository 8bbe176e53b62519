// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

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

/// Units of every rank by sorted position, ascending, so that loads descend.
void ListMembers(LayerPlacement* layer) {
  const std::int64_t stride = layer->capacity;
  layer->member.resize(static_cast<std::size_t>(layer->num_ranks * stride));
  std::fill(layer->rank_count.begin(), layer->rank_count.end(), 0);
  for (std::size_t i = 0; i < layer->rank.size(); ++i) {
    const std::int32_t rank = layer->rank[i];
    layer->member[rank * stride + layer->rank_count[rank]++] = static_cast<std::int32_t>(i);
  }
}

std::span<std::int32_t> MembersOf(LayerPlacement* layer, std::int32_t rank) {
  return {layer->member.data() + rank * layer->capacity,
          static_cast<std::size_t>(layer->rank_count[rank])};
}

/// Best exchange between the most loaded rank and `other`. The load that moves should be half of
/// their difference; for descending units of one rank the fitting unit of the other descends too.
void BestExchangeWith(LayerPlacement* layer, std::int32_t most, std::int32_t other,
                      Exchange* best) {
  const std::int64_t high = layer->rank_load[most];
  const std::int64_t low = layer->rank_load[other];
  const std::int64_t half = (high - low) / 2;
  if (high - half >= best->largest) return;
  const std::span<const std::int32_t> theirs = MembersOf(layer, other);
  const auto consider = [&](std::int32_t from, std::int32_t to) {
    const std::int64_t moved = layer->load[from] - (to < 0 ? 0 : layer->load[to]);
    const std::int64_t largest = std::max(high - moved, low + moved);
    if (moved > 0 && largest < best->largest) *best = {largest, from, to, other};
  };
  std::size_t at = 0;
  for (const std::int32_t from : MembersOf(layer, most)) {
    const std::int64_t wanted = layer->load[from] - half;
    while (at < theirs.size() && layer->load[theirs[at]] > wanted) ++at;
    if (at > 0) consider(from, theirs[at - 1]);
    if (at < theirs.size()) consider(from, theirs[at]);
    if (!layer->equal_count) consider(from, -1);
  }
}

/// Takes `gone` (if >= 0) out of an ascending list with room for one more, puts `come` in.
void Replace(std::int32_t* list, std::int32_t* count, std::int32_t gone, std::int32_t come) {
  if (gone >= 0) {
    *count = static_cast<std::int32_t>(std::remove(list, list + *count, gone) - list);
  }
  if (come < 0) return;
  std::int32_t at = (*count)++;
  for (; at > 0 && list[at - 1] > come; --at) list[at] = list[at - 1];
  list[at] = come;
}

void Apply(LayerPlacement* layer, std::int32_t most, const Exchange& exchange) {
  const std::int64_t moved =
      layer->load[exchange.from] - (exchange.to < 0 ? 0 : layer->load[exchange.to]);
  layer->rank[exchange.from] = exchange.rank;
  if (exchange.to >= 0) layer->rank[exchange.to] = most;
  const std::int64_t stride = layer->capacity;
  Replace(layer->member.data() + most * stride, &layer->rank_count[most], exchange.from,
          exchange.to);
  Replace(layer->member.data() + exchange.rank * stride, &layer->rank_count[exchange.rank],
          exchange.to, exchange.from);
  layer->rank_load[most] -= moved;
  layer->rank_load[exchange.rank] += moved;
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

std::int64_t MeanBound(const LayerPlacement& layer) {
  std::int64_t sum = 0;
  for (const std::int64_t load : layer.load) sum += load;
  const std::int64_t mean = sum / layer.num_ranks + (sum % layer.num_ranks != 0 ? 1 : 0);
  const std::int64_t fill = layer.equal_count ? layer.capacity - 1 : 0;
  const auto num_units = static_cast<std::int64_t>(layer.load.size());
  std::int64_t with_longest = layer.load[0];
  for (std::int64_t i = 1; i <= fill; ++i) with_longest += layer.load[num_units - i];
  return std::max(mean, with_longest);
}

std::int64_t CountingBound(LayerPlacement* layer, std::int64_t bound) {
  const auto num_units = static_cast<std::int64_t>(layer->load.size());
  const std::int64_t ranks = layer->num_ranks;
  std::vector<std::int64_t>& sum = layer->prefix;  // of the longest i units
  sum.resize(layer->load.size() + 1);
  sum[0] = 0;
  for (std::int64_t i = 0; i < num_units; ++i) sum[i + 1] = sum[i] + layer->load[i];
  for (std::int64_t top = 1; top <= num_units; ++top) {
    // Of the `top` longest units, k * ranks + excess in number, u ranks hold more than k each, in
    // sum at least k * u + excess, the smallest of them at best; under equal counts the other units
    // of those ranks are the smallest of all at best. The mean of the u ranks is a bound.
    const std::int64_t k = (top - 1) / ranks;
    const std::int64_t excess = top - k * ranks;
    std::int64_t weakest = INT64_MAX;
    for (std::int64_t u = excess; u >= 1; --u) {
      const std::int64_t held = k * u + excess;
      if (held > u * layer->capacity) break;
      const std::int64_t others = layer->equal_count ? u * layer->capacity - held : 0;
      const std::int64_t least =
          sum[top] - sum[top - held] + sum[num_units] - sum[num_units - others];
      if (least <= static_cast<int128>(bound) * u) {
        weakest = bound;
        break;
      }
      weakest = std::min(weakest, (least + u - 1) / u);
    }
    if (weakest != INT64_MAX) bound = std::max(bound, weakest);
  }
  return bound;
}

void PlaceLongestFirst(LayerPlacement* layer) {
  layer->rank_load.assign(static_cast<std::size_t>(layer->num_ranks), 0);
  layer->rank_count.assign(static_cast<std::size_t>(layer->num_ranks), 0);
  // A full rank counts as infinitely loaded, which leaves one comparison per rank.
  layer->open_load.assign(static_cast<std::size_t>(layer->num_ranks), 0);
  std::int64_t* const open = layer->open_load.data();
  for (std::size_t i = 0; i < layer->load.size(); ++i) {
    std::int32_t best = 0;
    std::int64_t least = open[0];
    for (std::int32_t rank = 1; rank < layer->num_ranks; ++rank) {
      best = open[rank] < least ? rank : best;
      least = std::min(least, open[rank]);
    }
    layer->rank[i] = best;
    layer->rank_load[best] += layer->load[i];
    open[best] = ++layer->rank_count[best] < layer->capacity ? layer->rank_load[best] : INT64_MAX;
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
  if (layer->rank_load[MostLoaded(*layer)] <= bound) return;
  ListMembers(layer);
  for (;;) {
    const std::int32_t most = MostLoaded(*layer);
    Exchange best{layer->rank_load[most], -1, -1, -1};
    if (best.largest <= bound) return;
    for (std::int32_t rank = 0; rank < layer->num_ranks; ++rank) {
      if (rank != most) BestExchangeWith(layer, most, rank, &best);
    }
    if (best.rank < 0) return;
    Apply(layer, most, best);
  }
}

}  // namespace shplb::internal
