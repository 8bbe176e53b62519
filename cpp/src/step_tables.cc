// SPDX-License-Identifier: Apache-2.0
#include "step_tables.h"

#include <algorithm>
#include <functional>

#include "shplb/error.h"

namespace shplb::internal {

namespace {

constexpr std::int64_t kMaxStepLayers = 1024;
constexpr std::int64_t kMaxStepHeads = 1024;
constexpr std::int64_t kMaxStepPages = UINT16_MAX;  // list lengths are kept as uint16
constexpr std::int64_t kMaxTableCells = std::int64_t{1} << 26;
constexpr std::int64_t kMaxStepRanks = 256;

void CheckSize(std::string_view argument, std::span<const std::int32_t> values,
               std::int64_t expected) {
  const auto got = static_cast<std::int64_t>(values.size());
  if (got != expected) {
    throw InvalidArgument(argument, ToText(got) + " elements", ToText(expected));
  }
}

void CheckKeepPages(const StepPlannerConfig& c) {
  CheckSize("keep_pages", c.keep_pages, c.num_layers * c.num_qo_heads * (c.max_pages + 1));
  for (std::int64_t row = 0; row < c.num_layers * c.num_qo_heads; ++row) {
    for (std::int64_t n = 0; n <= c.max_pages; ++n) {
      const std::int64_t pages = c.keep_pages[row * (c.max_pages + 1) + n];
      if (pages >= std::min<std::int64_t>(n, 1) && pages <= n) continue;
      throw InvalidArgument(
          ElementName("keep_pages", {row / c.num_qo_heads, row % c.num_qo_heads, n}), ToText(pages),
          n == 0 ? "0" : "1 to " + ToText(n) + " of the visible pages");
    }
  }
}

/// Sizes of the tables, and of the largest load a step can have.
void CheckExtent(const StepPlannerConfig& c) {
  const std::int64_t most_cells = c.num_layers * c.num_ranks * (1 + c.num_slots);
  if (most_cells * (c.max_pages + 1) > kMaxTableCells) {
    throw InvalidArgument("max_pages", ToText(c.max_pages),
                          "layers * ranks * (slots + 1) * pages of at most 2^26");
  }
  const std::int64_t rate = std::max(c.cost.kv_tile_ns, c.cost.dense_kv_tile_ns);
  const std::int64_t tiles = c.max_pages * kPageTokens / TileShapeOf(c.head_dim).kv_tokens + 1;
  const std::int64_t load = c.cost.item_ns + rate * tiles;
  if (load > kMaxBlockLoad / c.num_qo_heads) {
    throw InvalidArgument("cost", ToText(load) + " ns for the longest item",
                          "at most 2^31 / num_qo_heads");
  }
}

void CheckSlotGroups(const StepPlannerConfig& c) {
  CheckSize("slot_groups", c.slot_groups, c.num_layers * c.num_ranks * c.num_slots);
  std::vector<std::int32_t> copies(c.num_kv_heads);
  for (std::int64_t layer = 0; layer < c.num_layers; ++layer) {
    std::fill(copies.begin(), copies.end(), 0);
    const std::int64_t first = layer * c.num_ranks * c.num_slots;
    for (std::int64_t i = 0; i < c.num_ranks * c.num_slots; ++i) {
      const std::int32_t group = c.slot_groups[first + i];
      const std::string name =
          ElementName("slot_groups", {layer, i / c.num_slots, i % c.num_slots});
      if (group < 0 || group >= c.num_kv_heads) {
        throw InvalidArgument(name, ToText(std::int64_t{group}),
                              "a KV group in [0, " + ToText(c.num_kv_heads) + ")");
      }
      const auto rank_begin = c.slot_groups.begin() + first + i / c.num_slots * c.num_slots;
      const bool twice = std::find(rank_begin, c.slot_groups.begin() + first + i, group) !=
                         c.slot_groups.begin() + first + i;
      if (twice || ++copies[group] > 2) {
        throw InvalidArgument(name, "one more copy of group " + ToText(std::int64_t{group}),
                              "at most two copies, on different ranks");
      }
    }
    for (std::int64_t group = 0; group < c.num_kv_heads; ++group) {
      if (copies[group] > 0) continue;
      throw InvalidArgument(ElementName("slot_groups", {layer}),
                            "no copy of group " + ToText(group), "every KV group on some rank");
    }
  }
}

}  // namespace

void Validate(const StepPlannerConfig& c) {
  RequireInRange("num_layers", c.num_layers, 1, kMaxStepLayers);
  RequireInRange("num_qo_heads", c.num_qo_heads, 1, kMaxStepHeads);
  RequireInRange("num_kv_heads", c.num_kv_heads, 1, c.num_qo_heads);
  if (c.num_qo_heads % c.num_kv_heads != 0) {
    throw InvalidArgument("num_kv_heads", ToText(c.num_kv_heads),
                          "a divisor of num_qo_heads=" + ToText(c.num_qo_heads));
  }
  TileShapeOf(c.head_dim);
  RequireInRange("max_pages", c.max_pages, 1, kMaxStepPages);
  RequireInRange("num_ranks", c.num_ranks, 1, kMaxStepRanks);
  RequireInRange("num_slots", c.num_slots, 1, c.num_kv_heads);
  RequireInRange("rank", c.rank, 0, c.num_ranks - 1);
  RequireInRange("sink_pages", c.sink_pages, 0, kMaxStepPages);
  RequireInRange("local_pages", c.local_pages, 0, kMaxStepPages);
  RequireInRange("num_ctas", c.num_ctas, 1, kMaxPlanCtas);
  RequireInRange("num_threads", c.num_threads, 1, 64);
  Validate(c.cost);
  CheckExtent(c);
  CheckKeepPages(c);
  CheckSlotGroups(c);
}

LoadTables::LoadTables(const StepPlannerConfig& config)
    : num_ranks_(config.num_ranks),
      query_block_(TileShapeOf(config.head_dim).query_rows),
      block_pages_(query_block_ / kPageTokens),
      kv_tile_(TileShapeOf(config.head_dim).kv_tokens) {
  FindReplicas(config);
  const auto rows = static_cast<std::size_t>(config.max_pages + 1);
  block_loads_.assign(rows * static_cast<std::size_t>(num_cells_), 0);
  longest_.assign(rows * static_cast<std::size_t>(num_cells_), 0);
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    const std::int64_t first = layer * cells_per_layer_;
    for (std::int64_t i = 0; i < config.num_ranks * config.num_slots; ++i) {
      const std::int32_t group =
          config.slot_groups[layer * config.num_ranks * config.num_slots + i];
      const auto& replicas = replicas_[layer];
      const bool twice = std::any_of(replicas.begin(), replicas.end(),
                                     [&](const Replica& r) { return r.group == group; });
      if (!twice) FillGroup(config, layer, group, first + i / config.num_slots);
    }
    for (std::size_t k = 0; k < replicas_[layer].size(); ++k) {
      FillGroup(config, layer, replicas_[layer][k].group, ReplicaCell(layer, k));
    }
  }
  largest_block_load_ = *std::max_element(block_loads_.begin(), block_loads_.end());
  longest_rises_ = std::equal(longest_.begin() + num_cells_, longest_.end(), longest_.begin(),
                              std::greater_equal<>());
  FillPrefixSums(config);
}

void LoadTables::FindReplicas(const StepPlannerConfig& c) {
  std::size_t most = 0;
  replicas_.resize(c.num_layers);
  for (std::int64_t layer = 0; layer < c.num_layers; ++layer) {
    const auto groups =
        c.slot_groups.subspan(layer * c.num_ranks * c.num_slots, c.num_ranks * c.num_slots);
    for (std::size_t i = 0; i < groups.size(); ++i) {
      const auto other = std::find(groups.begin() + i + 1, groups.end(), groups[i]);
      if (other == groups.end()) continue;
      const auto j = static_cast<std::int32_t>(other - groups.begin());
      const auto slots = static_cast<std::int32_t>(c.num_slots);
      const auto at = static_cast<std::int32_t>(i);
      replicas_[layer].push_back({groups[i], {at / slots, j / slots}, {at % slots, j % slots}});
    }
    most = std::max(most, replicas_[layer].size());
  }
  cells_per_layer_ = c.num_ranks + static_cast<std::int64_t>(most);
  num_cells_ = cells_per_layer_ * c.num_layers;
}

std::int64_t LoadTables::ForcedPages(const StepPlannerConfig& config, std::int64_t n) const {
  if (n == 0) return 0;
  const std::int64_t first_row = (n - 1) / block_pages_ * query_block_;
  return NumForcedPages(first_row, n * kPageTokens, config.sink_pages, config.local_pages);
}

void LoadTables::FillGroup(const StepPlannerConfig& c, std::int64_t layer, std::int64_t group,
                           std::int64_t cell) {
  const std::int64_t group_size = c.num_qo_heads / c.num_kv_heads;
  const std::int64_t stride = c.max_pages + 1;
  const std::int32_t* const rows =
      c.keep_pages.data() + (layer * c.num_qo_heads + group * group_size) * stride;
  for (std::int64_t n = 1; n <= c.max_pages; ++n) {
    const std::int64_t forced = ForcedPages(c, n);
    std::int64_t sum = 0;
    std::int64_t longest = 0;
    for (std::int64_t head = 0; head < group_size; ++head) {
      const std::int64_t pages = std::max<std::int64_t>(rows[head * stride + n], forced);
      const std::int64_t tiles = (pages * kPageTokens + kv_tile_ - 1) / kv_tile_;
      const std::int64_t load = c.cost.item_ns + c.cost.kv_tile_ns * tiles;
      sum += load;
      longest = std::max(longest, load);
    }
    block_loads_[n * num_cells_ + cell] +=
        static_cast<std::uint32_t>(c.shared_lists ? longest * group_size : sum);
    std::uint32_t& most = longest_[n * num_cells_ + cell];
    most = std::max(most, static_cast<std::uint32_t>(longest));
  }
}

void LoadTables::FillPrefixSums(const StepPlannerConfig& c) {
  const std::int64_t blocks = c.max_pages / block_pages_;
  prefix_sums_.assign(static_cast<std::size_t>((blocks + 1) * num_cells_), 0);
  dense_sums_.assign(static_cast<std::size_t>(blocks + 1), 0);
  dense_loads_.assign(static_cast<std::size_t>(c.max_pages + 1), 0);
  const std::int64_t heads = c.num_slots * (c.num_qo_heads / c.num_kv_heads);
  for (std::int64_t n = 1; n <= c.max_pages; ++n) {
    const std::int64_t tiles = (n * kPageTokens + kv_tile_ - 1) / kv_tile_;
    dense_loads_[n] = heads * (c.cost.item_ns + c.cost.dense_kv_tile_ns * tiles);
  }
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t n = (block + 1) * block_pages_;
    dense_sums_[block + 1] = dense_sums_[block] + dense_loads_[n];
    for (std::int64_t cell = 0; cell < num_cells_; ++cell) {
      prefix_sums_[(block + 1) * num_cells_ + cell] =
          prefix_sums_[block * num_cells_ + cell] + block_loads_[n * num_cells_ + cell];
    }
  }
}

std::int64_t LoadTables::VisiblePages(const Extent& e, std::int64_t block) const {
  const std::int64_t end_row = std::min((block + 1) * query_block_, e.end);
  return (end_row + kPageTokens - 1) / kPageTokens;
}

void LoadTables::AddLoads(const Extent& e, std::int64_t sign, std::span<std::int64_t> sums) const {
  const std::int64_t last = EndBlock(e) - 1;
  const std::int64_t* const from = Row(prefix_sums_, FirstBlock(e)).data();
  const std::int64_t* const to = Row(prefix_sums_, last).data();
  const std::uint32_t* const end = BlockLoads(VisiblePages(e, last)).data();
  std::int64_t* const sum = sums.data();
  for (std::int64_t cell = 0; cell < num_cells_; ++cell) {
    sum[cell] += sign * (to[cell] - from[cell] + end[cell]);
  }
}

void LoadTables::RaiseLongest(const Extent& e, std::span<std::int64_t> longest) const {
  std::int64_t* const most = longest.data();
  const std::int64_t first = longest_rises_ ? EndBlock(e) - 1 : FirstBlock(e);
  for (std::int64_t block = first; block < EndBlock(e); ++block) {
    const std::uint32_t* const row = LongestItems(VisiblePages(e, block)).data();
    for (std::int64_t cell = 0; cell < num_cells_; ++cell) {
      most[cell] = std::max(most[cell], std::int64_t{row[cell]});
    }
  }
}

std::int64_t LoadTables::DenseLoad(const Extent& e) const {
  const std::int64_t last = EndBlock(e) - 1;
  return dense_sums_[last] - dense_sums_[FirstBlock(e)] + dense_loads_[VisiblePages(e, last)];
}

std::int64_t LoadTables::VisibleSum(const Extent& e) const {
  const std::int64_t first = FirstBlock(e);
  const std::int64_t last = EndBlock(e) - 1;
  return block_pages_ * (last * (last + 1) - first * (first + 1)) / 2 + VisiblePages(e, last);
}

}  // namespace shplb::internal
