// SPDX-License-Identifier: Apache-2.0
#include "balance_search.h"

#include <algorithm>
#include <utility>

namespace shplb::internal {

namespace {

/// Ways to split groups into equal unnamed ranks; counts on only to just above kMostSplits.
std::int64_t CountSplits(std::int64_t num_groups, std::int64_t num_ranks) {
  const std::int64_t each = num_groups / num_ranks;
  std::int64_t splits = 1;
  for (std::int64_t left = num_groups; left > 0; left -= each) {
    // The lowest group left takes its company from the others: (left - 1) choose (each - 1).
    std::int64_t ways = 1;
    for (std::int64_t i = 1; i <= std::min(each - 1, left - each); ++i) {
      ways = ways * (left - i) / i;
      if (ways > kMostSplits) return ways;
    }
    splits *= ways;
    if (splits > kMostSplits) return splits;
  }
  return splits;
}

class SplitSearch {
 public:
  SplitSearch(const BalanceLayer& layer, const CurveScore& score,
              std::span<std::int32_t> group_to_rank)
      : layer_(layer), score_(score), best_(group_to_rank) {
    most_ = score(layer.CurveOf(group_to_rank));
  }

  void TryAll() {
    split_.assign(best_.size(), 0);
    counts_.assign(static_cast<std::size_t>(layer_.num_ranks()), 0);
    Place(0, 0);
  }

  void TryExchanges() {
    // Each round improves the score; the limit only bounds the time.
    for (std::int64_t round = 0; round < layer_.num_groups(); ++round) {
      const std::vector<std::int32_t> from(best_.begin(), best_.end());
      bool better = false;
      for (std::size_t a = 0; a < from.size(); ++a) {
        for (std::size_t b = a + 1; b < from.size(); ++b) {
          if (from[a] == from[b]) continue;
          split_ = from;
          std::swap(split_[a], split_[b]);
          better = Try() || better;
        }
      }
      if (!better) return;
    }
  }

 private:
  bool Try() {
    const int128 worth = score_(layer_.CurveOf(split_));
    if (worth <= most_) return false;
    most_ = worth;
    std::copy(split_.begin(), split_.end(), best_.begin());
    return true;
  }

  /// Groups from `group` on, of ranks of which the first `used` have some.
  void Place(std::size_t group, std::int32_t used) {
    if (group == split_.size()) {
      Try();
      return;
    }
    const std::int64_t room = layer_.num_groups() / layer_.num_ranks();
    const auto ranks = static_cast<std::int32_t>(layer_.num_ranks());
    for (std::int32_t rank = 0; rank < std::min(used + 1, ranks); ++rank) {
      std::int64_t& count = counts_[static_cast<std::size_t>(rank)];
      if (count == room) continue;
      ++count;
      split_[group] = rank;
      Place(group + 1, std::max(used, rank + 1));
      --count;
    }
  }

  const BalanceLayer& layer_;
  const CurveScore& score_;
  std::span<std::int32_t> best_;
  int128 most_;
  std::vector<std::int32_t> split_;
  std::vector<std::int64_t> counts_;
};

}  // namespace

void ImproveSplit(const BalanceLayer& layer, const CurveScore& score,
                  std::span<std::int32_t> group_to_rank) {
  if (layer.num_ranks() == 1 || layer.num_ranks() == layer.num_groups()) return;
  if (CountSplits(layer.num_groups(), layer.num_ranks()) <= kMostSplits) {
    SplitSearch(layer, score, group_to_rank).TryAll();
  } else if (layer.num_groups() <= kMostSearchedGroups) {
    SplitSearch(layer, score, group_to_rank).TryExchanges();
  }
}

void NameByLowestGroup(std::int64_t num_ranks, std::span<std::int32_t> group_to_rank) {
  std::vector<std::int32_t> name(static_cast<std::size_t>(num_ranks), -1);
  std::int32_t next = 0;
  for (std::int32_t& rank : group_to_rank) {
    std::int32_t& given = name[static_cast<std::size_t>(rank)];
    if (given < 0) given = next++;
    rank = given;
  }
}

}  // namespace shplb::internal
