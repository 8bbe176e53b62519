// SPDX-License-Identifier: Apache-2.0
#include "step_predictor.h"

#include <algorithm>

#include "shplb/error.h"

namespace shplb::internal {

StepPredictor::StepPredictor(const StepPlannerConfig& c)
    : tables_(c),
      divider_(c, tables_),
      num_layers_(c.num_layers),
      num_ranks_(c.num_ranks),
      num_ctas_(c.num_ctas),
      max_tokens_(c.max_pages * kPageTokens),
      kv_heads_per_rank_(c.num_slots),
      // Of a replica, a rank selects pages for its own part only.
      qo_heads_per_rank_((c.num_qo_heads + c.num_ranks - 1) / c.num_ranks),
      sink_pages_(c.sink_pages),
      local_pages_(c.local_pages),
      cost_(c.cost),
      sums_(tables_.num_cells()),
      longest_(tables_.num_cells()),
      one_(tables_.num_cells()),
      part_(tables_.num_cells()),
      rank_sum_(c.num_ranks),
      rank_longest_(c.num_ranks) {}

void StepPredictor::Run(std::span<const std::int64_t> prefix_lens,
                        std::span<const std::int64_t> new_lens, StepMode mode, StepPlan* plan,
                        std::span<const std::uint8_t> stock) {
  CheckBatch(prefix_lens, new_lens, stock);
  plan->dense_ns = 0;
  for (std::size_t i = 0; i < extents_.size(); ++i) plan->dense_ns += DenseCost(i);
  Choose(mode, stock, plan);
  MakeBlocks(plan);
  const bool is_open = mode == StepMode::kAuto && !PaysAnyhow(*plan);
  const RankSpeeds nominal;
  Divide(is_open ? nominal : speeds_, plan);
  if (!is_open) return;
  if (plan->step_ns > plan->dense_ns) {
    MakeDense(plan);
    MakeBlocks(plan);
  } else if (speeds_.nominal()) {
    return;
  }
  Divide(speeds_, plan);
}

void StepPredictor::CheckBatch(std::span<const std::int64_t> prefix_lens,
                               std::span<const std::int64_t> new_lens,
                               std::span<const std::uint8_t> stock) {
  const auto num_requests = static_cast<std::int64_t>(prefix_lens.size());
  RequireInRange("num_requests", num_requests, 1, kMaxStepBlocks);
  if (new_lens.size() != prefix_lens.size()) {
    throw InvalidArgument("new_lens",
                          ToText(static_cast<std::int64_t>(new_lens.size())) + " elements",
                          ToText(num_requests) + ", as prefix_lens");
  }
  if (!stock.empty() && stock.size() != prefix_lens.size()) {
    throw InvalidArgument("stock", ToText(static_cast<std::int64_t>(stock.size())) + " elements",
                          ToText(num_requests) + ", as prefix_lens");
  }
  extents_.clear();
  rows_.clear();
  std::int64_t row = 0;
  std::int64_t num_blocks = 0;
  for (std::int64_t i = 0; i < num_requests; ++i) {
    const std::int64_t prefix = prefix_lens[i];
    if (prefix < 0 || prefix >= max_tokens_) {
      throw InvalidArgument(ElementName("prefix_lens", {i}), ToText(prefix),
                            "0 to max_pages * 64 - 1 = " + ToText(max_tokens_ - 1));
    }
    if (new_lens[i] < 1 || new_lens[i] > max_tokens_ - prefix) {
      throw InvalidArgument(ElementName("new_lens", {i}), ToText(new_lens[i]),
                            "1 to max_pages * 64 - prefix = " + ToText(max_tokens_ - prefix));
    }
    extents_.push_back({prefix, prefix + new_lens[i]});
    rows_.push_back(row);
    row += new_lens[i];
    num_blocks += tables_.EndBlock(extents_.back()) - tables_.FirstBlock(extents_.back());
  }
  if (num_blocks > kMaxStepBlocks) {
    throw InvalidArgument("new_lens", ToText(num_blocks) + " query blocks", "at most 2^20");
  }
}

std::int64_t StepPredictor::DenseCost(std::size_t request) const {
  return tables_.DenseLoad(extents_[request]) / num_ctas_ * num_layers_;
}

SelectionWork StepPredictor::SelectionOf(const Extent& e) const {
  return {tables_.VisibleSum(e), tables_.EndBlock(e) - tables_.FirstBlock(e),
          (e.end + kPageTokens - 1) / kPageTokens};
}

/// Per layer, ns.
std::int64_t StepPredictor::SelectCost(const SelectionWork& work) const {
  const std::int64_t per_head =
      (work.pairs * cost_.select_pair_ps + work.blocks * cost_.select_block_ps) / 1000;
  const std::int64_t per_kv_head = work.pages * cost_.pool_page_ps / 1000;
  return per_head * qo_heads_per_rank_ + per_kv_head * kv_heads_per_rank_;
}

void StepPredictor::Choose(StepMode mode, std::span<const std::uint8_t> stock, StepPlan* plan) {
  plan->sparse.assign(extents_.size(), 0);
  for (std::size_t i = 0; mode != StepMode::kDense && i < extents_.size(); ++i) {
    if (!stock.empty() && stock[i] != 0) continue;
    // One new token is a decode step (of a mixed batch): dense, like all decoding.
    const bool decodes = extents_[i].end - extents_[i].prefix == 1;
    plan->sparse[i] = mode == StepMode::kSparse || (!decodes && PaysAlone(i)) ? 1 : 0;
  }
  Start(*plan);
  if (mode == StepMode::kAuto) DropStarved(plan);
  plan->step_ns = StepCost(*plan);
  if (mode != StepMode::kAuto || plan->step_ns <= plan->dense_ns) return;
  // Dropping one request at a time can stop before the step in which all are dense.
  MakeDense(plan);
}

void StepPredictor::MakeDense(StepPlan* plan) {
  std::fill(plan->sparse.begin(), plan->sparse.end(), std::uint8_t{0});
  Start(*plan);
  plan->step_ns = plan->dense_ns;
}

std::int64_t StepPredictor::StepCost(const StepPlan& plan) {
  const bool any = std::find(plan.sparse.begin(), plan.sparse.end(), 1) != plan.sparse.end();
  return (any ? SparseCost() : 0) + DenseRest(plan);
}

/// Of the requests on the stock path.
std::int64_t StepPredictor::DenseRest(const StepPlan& plan) const {
  std::int64_t cost = 0;
  for (std::size_t i = 0; i < extents_.size(); ++i) {
    if (plan.sparse[i] == 0) cost += DenseCost(i);
  }
  return cost;
}

/// Whether the request is cheaper sparse on a GPU that others keep full.
bool StepPredictor::PaysAlone(std::size_t request) {
  std::fill(one_.begin(), one_.end(), 0);
  tables_.AddLoads(extents_[request], 1, one_);
  std::int64_t cost = SelectCost(SelectionOf(extents_[request])) * num_layers_;
  for (std::int64_t layer = 0; layer < num_layers_; ++layer) {
    divider_.Estimate(layer, one_, rank_sum_);
    cost += *std::max_element(rank_sum_.begin(), rank_sum_.end()) / num_ctas_;
  }
  return cost < DenseCost(request);
}

/// Sums over the requests marked sparse.
void StepPredictor::Start(const StepPlan& plan) {
  std::fill(sums_.begin(), sums_.end(), 0);
  std::fill(longest_.begin(), longest_.end(), 0);
  selection_ = {};
  for (std::size_t i = 0; i < extents_.size(); ++i) {
    if (plan.sparse[i] == 0) continue;
    tables_.AddLoads(extents_[i], 1, sums_);
    tables_.RaiseLongest(extents_[i], longest_);
    selection_.Add(SelectionOf(extents_[i]));
  }
}

/// Moves requests to the stock path while that makes the step shorter: always the one that ends
/// latest in its context, whose items are the longest and which cannot be split over CTAs.
void StepPredictor::DropStarved(StepPlan* plan) {
  for (;;) {
    std::size_t last = extents_.size();
    std::size_t count = 0;
    for (std::size_t i = 0; i < extents_.size(); ++i) {
      if (plan->sparse[i] == 0) continue;
      ++count;
      if (last == extents_.size() || extents_[i].end > extents_[last].end) last = i;
    }
    if (count == 0) return;
    const std::int64_t with = SparseCost();
    plan->sparse[last] = 0;
    Start(*plan);
    const std::int64_t without = (count > 1 ? SparseCost() : 0) + DenseCost(last);
    if (without < with) continue;
    plan->sparse[last] = 1;
    Start(*plan);
    return;
  }
}

std::int64_t StepPredictor::SelectionTime() const {
  return num_layers_ * (cost_.layer_ns + SelectCost(selection_));
}

/// Prediction for the sparse requests together, before replicas are cut.
std::int64_t StepPredictor::SparseCost() {
  std::int64_t cost = SelectionTime();
  for (std::int64_t layer = 0; layer < num_layers_; ++layer) cost += LayerMakespan(layer);
  return cost;
}

std::int64_t StepPredictor::LayerMakespan(std::int64_t layer) {
  divider_.Estimate(layer, sums_, rank_sum_);
  std::copy_n(longest_.begin() + layer * tables_.cells_per_layer(), num_ranks_,
              rank_longest_.begin());
  const std::span<const Replica> replicas = tables_.replicas(layer);
  for (std::size_t k = 0; k < replicas.size(); ++k) {
    for (const std::int32_t rank : replicas[k].rank) {
      rank_longest_[rank] = std::max(rank_longest_[rank], longest_[tables_.ReplicaCell(layer, k)]);
    }
  }
  std::int64_t most = 0;
  for (std::int64_t rank = 0; rank < num_ranks_; ++rank) {
    most = std::max(most, MakespanOf(rank_sum_[rank], rank_longest_[rank]));
  }
  return most;
}

void StepPredictor::MakeBlocks(StepPlan* plan) {
  blocks_.clear();
  ranges_.clear();
  const std::int64_t size = tables_.query_block();
  for (std::size_t i = 0; i < extents_.size(); ++i) {
    if (plan->sparse[i] == 0) continue;
    const Extent& e = extents_[i];
    ranges_.push_back({e, static_cast<std::int32_t>(blocks_.size())});
    for (std::int64_t b = tables_.FirstBlock(e); b < tables_.EndBlock(e); ++b) {
      const std::int64_t first = std::max(b * size, e.prefix);
      const std::int64_t end = std::min((b + 1) * size, e.end);
      const std::int64_t visible = tables_.VisiblePages(e, b);
      const std::int64_t forced = NumForcedPages(first, end, sink_pages_, local_pages_);
      blocks_.push_back({static_cast<std::int32_t>(i), static_cast<std::int32_t>(first),
                         static_cast<std::int32_t>(rows_[i] + first - e.prefix),
                         static_cast<std::int32_t>(end - first), static_cast<std::int32_t>(visible),
                         static_cast<std::int32_t>(forced),
                         static_cast<std::int32_t>(visible * kPageTokens - end)});
    }
  }
  plan->num_blocks = static_cast<std::int64_t>(blocks_.size());
}

/// Whether the step is faster than dense however its replicas are divided, so that it need not be
/// divided at nominal speed, too, to tell.
bool StepPredictor::PaysAnyhow(const StepPlan& plan) {
  if (speeds_.nominal()) return false;
  if (!divider_.any() || plan.num_blocks == 0) return true;
  std::int64_t most = SelectionTime();
  for (std::int64_t layer = 0; layer < num_layers_; ++layer) {
    const std::int64_t first = layer * tables_.cells_per_layer();
    std::copy_n(sums_.begin() + first, num_ranks_, rank_sum_.begin());
    const std::span<const Replica> replicas = tables_.replicas(layer);
    for (std::size_t k = 0; k < replicas.size(); ++k) {
      const std::int64_t all = sums_[tables_.ReplicaCell(layer, k)];
      for (const std::int32_t rank : replicas[k].rank) rank_sum_[rank] += all;
    }
    const std::span longest(longest_.data() + first,
                            static_cast<std::size_t>(tables_.cells_per_layer()));
    most += MakespanOf(*std::max_element(rank_sum_.begin(), rank_sum_.end()),
                       *std::max_element(longest.begin(), longest.end()));
  }
  return most + DenseRest(plan) <= plan.dense_ns;
}

/// Divides replicas; then predicts the ranks, and the step once more as it was divided.
void StepPredictor::Divide(const RankSpeeds& speeds, StepPlan* plan) {
  plan->rank_makespan_ns.resize(static_cast<std::size_t>(num_layers_ * num_ranks_));
  std::int64_t slowest = 0;
  for (std::int64_t layer = 0; layer < num_layers_; ++layer) {
    divider_.Divide(layer, sums_, ranges_, speeds, rank_sum_);
    slowest += PredictRanks(layer, speeds, plan);
  }
  if (!divider_.any() || plan->num_blocks == 0) return;
  plan->step_ns = SelectionTime() + slowest + DenseRest(*plan);
}

/// Returns the slowest rank's makespan at nominal speed.
std::int64_t StepPredictor::PredictRanks(std::int64_t layer, const RankSpeeds& speeds,
                                         StepPlan* plan) {
  std::copy_n(longest_.begin() + layer * tables_.cells_per_layer(), num_ranks_,
              rank_longest_.begin());
  const std::span<const Replica> replicas = tables_.replicas(layer);
  for (std::size_t k = 0; k < replicas.size(); ++k) {
    const Cut& at = cut(layer, k);
    const bool computes[] = {at.block > 0 || at.heads != 0, at.block < plan->num_blocks};
    for (const std::int32_t side : {0, 1}) {
      if (!computes[side]) continue;
      std::int64_t& longest = rank_longest_[replicas[k].rank[side]];
      longest = std::max(longest, longest_[tables_.ReplicaCell(layer, k)]);
    }
  }
  std::int64_t most = 0;
  for (std::int64_t rank = 0; rank < num_ranks_; ++rank) {
    const std::int64_t makespan = MakespanOf(rank_sum_[rank], rank_longest_[rank]);
    plan->rank_makespan_ns[layer * num_ranks_ + rank] = speeds.Time(rank, makespan);
    most = std::max(most, makespan);
  }
  return most;
}

void StepPredictor::DecodeLoads(std::span<const std::int64_t> kv_lens,
                                std::span<std::int64_t> loads) {
  const auto num_requests = static_cast<std::int64_t>(kv_lens.size());
  RequireInRange("num_requests", num_requests, 1, kMaxStepBlocks);
  if (static_cast<std::int64_t>(loads.size()) != num_layers_ * num_ranks_) {
    throw InvalidArgument("loads", ToText(static_cast<std::int64_t>(loads.size())) + " elements",
                          "num_layers * num_ranks = " + ToText(num_layers_ * num_ranks_));
  }
  for (std::int64_t i = 0; i < num_requests; ++i) {
    if (kv_lens[i] < 0 || kv_lens[i] >= max_tokens_) {
      throw InvalidArgument(ElementName("kv_lens", {i}), ToText(kv_lens[i]),
                            "0 to max_pages * 64 - 1 = " + ToText(max_tokens_ - 1));
    }
  }
  std::fill(one_.begin(), one_.end(), 0);
  // uint32 holds at least two rows of the table, usually hundreds.
  const std::int64_t rows_that_fit = UINT32_MAX / tables_.LargestBlockLoad();
  for (std::int64_t i = 0; i < num_requests; i += rows_that_fit) {
    std::fill(part_.begin(), part_.end(), 0);
    for (std::int64_t j = i; j < std::min(i + rows_that_fit, num_requests); ++j) {
      const std::uint32_t* const row = tables_.BlockLoads(kv_lens[j] / kPageTokens + 1).data();
      std::uint32_t* const sum = part_.data();
      for (std::int64_t cell = 0; cell < tables_.num_cells(); ++cell) sum[cell] += row[cell];
    }
    for (std::size_t cell = 0; cell < part_.size(); ++cell) one_[cell] += part_[cell];
  }
  for (std::int64_t layer = 0; layer < num_layers_; ++layer) {
    const std::int64_t first = layer * tables_.cells_per_layer();
    std::int64_t* const out = loads.data() + layer * num_ranks_;
    std::copy_n(one_.begin() + first, num_ranks_, out);
    std::int64_t cell = first + num_ranks_;
    for (const Replica& r : tables_.replicas(layer)) {
      out[r.rank[0]] += one_[cell] / 2;
      out[r.rank[1]] += one_[cell] - one_[cell] / 2;
      ++cell;
    }
  }
}

}  // namespace shplb::internal
