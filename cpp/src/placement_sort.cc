// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <bit>

#include "placement_layer.h"

namespace shplb::internal {

namespace {

constexpr std::size_t kBlock = 8;
/// Above, the comparisons of the network, O(n log^2 n), outweigh the branches it saves.
constexpr std::size_t kMostInNetwork = 256;

using Key = std::uint64_t;

/// By arithmetic, since compilers make branches of min and max.
void Order(Key& larger, Key& smaller) {
  const Key swap = (larger ^ smaller) & (Key{0} - Key{larger < smaller});
  larger ^= swap;
  smaller ^= swap;
}

/// Batcher's odd-even merge sort of eight keys, 19 comparisons.
void SortBlock(Key* key) {
  Key k[kBlock];
  std::copy_n(key, kBlock, k);
  for (const int i : {0, 2, 4, 6}) Order(k[i], k[i + 1]);
  for (const int i : {0, 1, 4, 5}) Order(k[i], k[i + 2]);
  for (const int i : {1, 5}) Order(k[i], k[i + 1]);
  for (const int i : {0, 1, 2, 3}) Order(k[i], k[i + 4]);
  for (const int i : {2, 3}) Order(k[i], k[i + 2]);
  for (const int i : {1, 3, 5}) Order(k[i], k[i + 1]);
  std::copy_n(k, kBlock, key);
}

/// Of a bitonic sequence of eight.
void MergeBlock(Key* key) {
  Key k[kBlock];
  std::copy_n(key, kBlock, k);
  for (const int i : {0, 1, 2, 3}) Order(k[i], k[i + 4]);
  for (const int i : {0, 1, 4, 5}) Order(k[i], k[i + 2]);
  for (const int i : {0, 2, 4, 6}) Order(k[i], k[i + 1]);
  std::copy_n(k, kBlock, key);
}

/// Bitonic sort, descending: the same comparisons for any keys, so that no branch depends on them.
/// keys.size(): a power of two, at least kBlock.
void SortByNetwork(std::span<Key> keys) {
  const std::size_t size = keys.size();
  for (std::size_t at = 0; at < size; at += kBlock) SortBlock(keys.data() + at);
  for (std::size_t merged = 2 * kBlock; merged <= size; merged *= 2) {
    for (std::size_t at = 0; at < size; at += merged) {
      Key* const first = keys.data() + at;
      Key* const last = first + merged - 1;
      for (std::size_t i = 0; i < merged / 2; ++i) Order(first[i], *(last - i));
    }
    for (std::size_t half = merged / 4; half >= kBlock; half /= 2) {
      for (std::size_t at = 0; at < size; at += 2 * half) {
        Key* const first = keys.data() + at;
        for (std::size_t i = 0; i < half; ++i) Order(first[i], first[half + i]);
      }
    }
    for (std::size_t at = 0; at < size; at += kBlock) MergeBlock(keys.data() + at);
  }
}

void SortByComparing(std::span<const std::int64_t> loads, LayerPlacement* layer) {
  // Negated, so that the plain order of pairs is descending load, then ascending unit.
  layer->key.clear();
  for (std::size_t i = 0; i < loads.size(); ++i) {
    layer->key.emplace_back(-loads[i], static_cast<std::int32_t>(i));
  }
  std::sort(layer->key.begin(), layer->key.end());
  for (std::size_t i = 0; i < loads.size(); ++i) {
    layer->load[i] = -layer->key[i].first;
    layer->unit[i] = layer->key[i].second;
  }
}

}  // namespace

void SortUnits(std::span<const std::int64_t> loads, LayerPlacement* layer) {
  const std::size_t num_units = loads.size();
  Key all = 0;
  for (const std::int64_t load : loads) all |= static_cast<Key>(load);
  const int bits = std::bit_width(num_units - 1);
  if (num_units > kMostInNetwork || std::bit_width(all) + bits > 64) {
    SortByComparing(loads, layer);
    return;
  }
  const Key last = num_units - 1;
  // Behind all units, or equal to the last one, are keys that stand for none.
  layer->packed.assign(std::bit_ceil(std::max(num_units, kBlock)), 0);
  for (std::size_t i = 0; i < num_units; ++i) {
    layer->packed[i] = static_cast<Key>(loads[i]) << bits | (last - i);
  }
  SortByNetwork(layer->packed);
  const Key mask = (Key{1} << bits) - 1;
  for (std::size_t i = 0; i < num_units; ++i) {
    layer->load[i] = static_cast<std::int64_t>(layer->packed[i] >> bits);
    layer->unit[i] = static_cast<std::int32_t>(last - (layer->packed[i] & mask));
  }
}

}  // namespace shplb::internal
