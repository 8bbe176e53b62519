// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "placement_layer.h"

namespace shplb::internal {

namespace {

/// Depth-first over units in descending order. A rank is skipped if an earlier one has the same
/// load and count, since the two are interchangeable.
class BranchAndBound {
 public:
  BranchAndBound(LayerPlacement* layer, std::int64_t bound, std::int64_t max_nodes)
      : layer_(layer), bound_(bound), nodes_left_(max_nodes), trial_(layer->rank) {
    best_ = *std::max_element(layer->rank_load.begin(), layer->rank_load.end());
    const auto num_ranks = static_cast<std::size_t>(layer->num_ranks);
    load_.assign(num_ranks, 0);
    count_.assign(num_ranks, 0);
    left_ = 0;
    for (const std::int64_t load : layer->load) left_ += load;
  }

  bool Run() {
    Descend(0);
    CountRanks(layer_);
    return nodes_left_ >= 0;
  }

 private:
  bool Done() const { return best_ <= bound_ || nodes_left_ < 0; }

  void Descend(std::size_t unit) {
    if (unit == trial_.size()) {
      best_ = *std::max_element(load_.begin(), load_.end());
      layer_->rank = trial_;
      return;
    }
    if (--nodes_left_ < 0) return;
    for (std::size_t rank = 0; rank < load_.size(); ++rank) {
      if (count_[rank] >= layer_->capacity || load_[rank] + layer_->load[unit] >= best_) continue;
      if (SameAsEarlier(rank) || !HasRoom()) continue;
      Put(unit, rank, 1);
      Descend(unit + 1);
      Put(unit, rank, -1);
      if (Done()) return;
    }
  }

  bool SameAsEarlier(std::size_t rank) const {
    for (std::size_t other = 0; other < rank; ++other) {
      if (load_[other] == load_[rank] && count_[other] == count_[rank]) return true;
    }
    return false;
  }

  /// The rest fits below `best_` only if the ranks' free load, and number of places, suffice.
  bool HasRoom() const {
    std::int64_t room = 0;
    for (std::size_t rank = 0; rank < load_.size(); ++rank) {
      if (count_[rank] < layer_->capacity) room += best_ - 1 - load_[rank];
      if (room >= left_) return true;
    }
    return room >= left_;
  }

  void Put(std::size_t unit, std::size_t rank, std::int32_t sign) {
    load_[rank] += sign * layer_->load[unit];
    count_[rank] += sign;
    left_ -= sign * layer_->load[unit];
    trial_[unit] = static_cast<std::int32_t>(rank);
  }

  LayerPlacement* layer_;
  std::int64_t bound_;
  std::int64_t nodes_left_;
  std::int64_t best_;
  std::int64_t left_;  // load of the units not placed yet
  std::vector<std::int32_t> trial_;
  std::vector<std::int64_t> load_;
  std::vector<std::int32_t> count_;
};

}  // namespace

bool PlaceExact(LayerPlacement* layer, std::int64_t bound, std::int64_t max_nodes) {
  return BranchAndBound(layer, bound, max_nodes).Run();
}

}  // namespace shplb::internal
